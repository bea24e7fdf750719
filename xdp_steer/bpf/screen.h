/* SPDX-License-Identifier: GPL-2.0
 *
 * Screens: what a zone does not want to see whatever its policies say. Every packet that comes in by a port of a zone with
 * screens is looked at in passing (is_suspect()); the few that may be something have a stage of their own, before
 * sessions are looked up.
 */
#define PORT_NETBIOS		139
#define TEAR_DROP_OCTETS	8	/* a fragment that carries less overlaps, or is made to */
#define IP_MAXIMUM		65535

/* Count one in a window; how many there are then. All CPUs share the word, window << 32 | count, and more than
 * `enough` is not counted: the word is left alone where it would be fought over most. */
static __always_inline u32 tally(u64 *word, u32 window, u32 enough)
{
	u64 seen = *(volatile u64 *)word;

	if ((s32)(window - (u32)(seen >> 32)) > 0) {
		if (__sync_val_compare_and_swap(word, seen, (u64)window << 32 | 1) == seen)
			return 1;
	} else if ((u32)seen > enough) {
		return seen;
	}
	return __sync_fetch_and_add(word, 1) + 1;
}

static __always_inline struct screen *screen_of(struct meta *m)
{
	u32 index = m->bank * MAX_ZONES + m->key.zone;

	return screens.lookup(&index);
}

/* Count a hit, and tell of it unless the last second was full of them. */
static __always_inline void note(struct meta *m, u32 reason, u32 kind)
{
	u32 index = m->key.zone * MAX_SCREENS + reason - REASON_SCREEN_LAND;
	struct verdict_count *count = screen_counts.lookup(&index);
	u64 *told = screen_told.lookup(&index);

	if (!count || !told)
		return;
	count->packets++;
	count->octets += m->length;
	if (tally(told, bpf_ktime_get_coarse_ns() / SECOND_NS, SCREEN_EVENTS) <= SCREEN_EVENTS)
		report(m, kind, reason);
}

/* Before anything is known of where the packet goes. */
static __always_inline void describe_arrival(struct meta *m)
{
	remain(m);
	m->out_zone = m->key.zone;
	m->session_id = 0;
	m->rule = 0;
}

static __always_inline u32 screen_tcp(struct meta *m, u32 wanted)
{
	u8 flags = m->tcp_flags;

	if (wanted & 1 << SCREEN_SYN_FIN && (flags & (TCP_SYN | TCP_FIN)) == (TCP_SYN | TCP_FIN))
		return REASON_SCREEN_SYN_FIN;
	if (wanted & 1 << SCREEN_NO_FLAG && !flags)
		return REASON_SCREEN_NO_FLAG;
	if (wanted & 1 << SCREEN_FIN_NO_ACK && (flags & (TCP_FIN | TCP_ACK)) == TCP_FIN)
		return REASON_SCREEN_FIN_NO_ACK;
	if (wanted & 1 << SCREEN_WINNUKE && flags & TCP_URG && m->key.dport == htons(PORT_NETBIOS))
		return REASON_SCREEN_WINNUKE;
	if (wanted & 1 << SCREEN_SYN_FRAGMENT && flags & TCP_SYN && m->shape & SHAPE_FRAGMENT)
		return REASON_SCREEN_SYN_FRAGMENT;
	return NEXT;
}

/* Where in its datagram an IPv4 fragment begins. */
static __always_inline u32 fragment_offset(struct xdp_md *ctx, struct meta *m)
{
	struct iphdr *ip = (void *)(long)ctx->data + (m->l3 & OFFSET_MASK);

	if ((void *)(ip + 1) > (void *)(long)ctx->data_end)
		return 0;
	return (ntohs(ip->frag_off) & IP_FRAGMENT_OFFSET) * 8;
}

/* What one packet alone tells. NEXT, or the reason of the first screen that it hits. */
static __always_inline u32 screen_packet(struct xdp_md *ctx, struct meta *m, u32 wanted)
{
	bool later4 = m->flags & META_LATER && !m->v6;
	u32 reason = NEXT;

	if (wanted & 1 << SCREEN_LAND && same_address(&m->key.saddr, &m->key.daddr))
		return REASON_SCREEN_LAND;
	if (m->key.protocol == IPPROTO_TCP && !(m->flags & META_LATER))
		reason = screen_tcp(m, wanted);
	if (reason != NEXT)
		return reason;
	if (wanted & 1 << SCREEN_TEAR_DROP && later4 && m->length - (m->l4 - m->l3) < TEAR_DROP_OCTETS)
		return REASON_SCREEN_TEAR_DROP;
	if (wanted & 1 << SCREEN_SOURCE_ROUTE && m->shape & (SHAPE_OPTIONS | SHAPE_SOURCE_ROUTE))
		return REASON_SCREEN_SOURCE_ROUTE;
	if (wanted & 1 << SCREEN_PING_OF_DEATH && later4 && fragment_offset(ctx, m) + m->length > IP_MAXIMUM)
		return REASON_SCREEN_PING_OF_DEATH;
	return NEXT;
}

int stage_screen(struct xdp_md *ctx)
{
	struct meta *m = meta_of(META_XDP);
	struct screen *screen;
	u32 reason;

	if (!m)
		return drop(ctx, REASON_NO_STAGE);
	screen = screen_of(m);
	if (!screen)
		return admit(ctx, m);
	reason = screen_packet(ctx, m, screen->wanted);
	if (reason != NEXT) {
		describe_arrival(m);
		note(m, reason, screen->flags & SCREEN_ALARM_ONLY ? EVENT_ALARM : EVENT_SCREEN);
		if (!(screen->flags & SCREEN_ALARM_ONLY))
			return drop(ctx, reason);
	}
	return admit(ctx, m);
}
