/* SPDX-License-Identifier: GPL-2.0
 *
 * Screens: what a zone does not want to see whatever its policies say. Every packet that comes in by a port of a zone with
 * screens is looked at in passing (is_suspect()); what may be something, or is counted, has a stage of its own, before
 * sessions are looked up.
 */
#define PORT_NETBIOS		139
#define TEAR_DROP_OCTETS	8	/* a fragment that carries less overlaps, or is made to */
#define IP_MAXIMUM		65535

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

static __always_inline bool is_syn(struct meta *m)
{
	return m->key.protocol == IPPROTO_TCP && !(m->flags & META_LATER) && (m->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

/* The count of an address of this zone. */
static __always_inline u64 *screen_word(struct meta *m, const struct address *a, u16 screen)
{
	struct screen_key key = { .addr = *a, .zone = m->key.zone, .screen = screen };
	u64 *word = screen_words.lookup(&key), none = 0;

	if (word)
		return word;
	screen_words.insert(&key, &none);	/* another CPU may win */
	return screen_words.lookup(&key);
}

/* One more packet of this zone: are that too many in the window? */
static __always_inline bool floods(struct meta *m, struct screen *screen, u32 which)
{
	u32 index = m->key.zone * MAX_SCREENS + which, limit = screen->thresholds[which];
	u64 *word;

	if (!(screen->wanted & 1 << which))
		return false;
	word = screen_floods.lookup(&index);
	return word && tally(word, window_of(screen), limit) > limit;
}

/* The same for one address. */
static __always_inline bool floods_of(struct meta *m, struct screen *screen, u32 which, const struct address *a)
{
	u32 limit = screen->thresholds[which];
	u64 *word;

	if (!(screen->wanted & 1 << which))
		return false;
	word = screen_word(m, a, which);
	return word && tally(word, window_of(screen), limit) > limit;
}

/* IPsec to this machine, or a fragment of what may be: whatever else there is, it gets to the kernel. */
static __always_inline bool is_own_ipsec(struct meta *m)
{
	if (m->flags & META_LATER ? m->key.protocol != IPPROTO_UDP : !is_ipsec(m->key.protocol, m->key.dport))
		return false;
	return local_addresses.lookup(&m->key.daddr);
}

/* More of a kind than a zone, a source or a destination may see in a window. */
static __always_inline u32 screen_flood(struct meta *m, struct screen *screen)
{
	if (is_syn(m)) {
		if (floods(m, screen, SCREEN_SYN_FLOOD)) {
			u32 reason = demand_cookie(m, screen);

			if (reason != NEXT)
				return reason;
		}
		if (floods_of(m, screen, SCREEN_SYN_SOURCE, &m->key.saddr))
			return REASON_SCREEN_SYN_SOURCE;
		if (floods_of(m, screen, SCREEN_SYN_DESTINATION, &m->key.daddr))
			return REASON_SCREEN_SYN_DESTINATION;
		return NEXT;
	}
	if (is_icmp(m) && floods(m, screen, SCREEN_ICMP_FLOOD))
		return REASON_SCREEN_ICMP_FLOOD;
	if (m->key.protocol == IPPROTO_UDP && !is_own_ipsec(m) && floods(m, screen, SCREEN_UDP_FLOOD))
		return REASON_SCREEN_UDP_FLOOD;
	return NEXT;
}

int stage_screen(struct xdp_md *ctx)
{
	struct meta *m = meta_of(META_XDP);
	struct screen *screen;
	u32 reason;

	if (!m)
		return drop(ctx, REASON_NO_STAGE);
	screen = screens_of(m->bank, m->key.zone);
	if (!screen)
		return admit(ctx, m);
	reason = screen_packet(ctx, m, screen->wanted);
	if (reason == NEXT)
		reason = screen_flood(m, screen);
	if (reason == REASON_SCREEN_SYN_COOKIE)
		return go(ctx, STAGE_COOKIE);
	if (reason != NEXT) {
		describe_arrival(m);
		if (screen_hit(m, screen, reason) != NEXT)
			return drop(ctx, reason);
	}
	return admit(ctx, m);
}
