/* SPDX-License-Identifier: GPL-2.0
 *
 * SYN cookies. Beyond the threshold of a SYN flood, a SYN is answered by XDP in the name of its destination, with a cookie
 * for a sequence number and no window, and nothing is remembered of it. Who acknowledges a cookie is where it says it is: its
 * connection, which nobody else knows of, is reset, and for a while its SYNs pass.
 */
#define COOKIE_SECONDS	600	/* that a source is believed for */

static __always_inline u32 cookie_second(void)
{
	return bpf_ktime_get_coarse_ns() / SECOND_NS;
}

static __always_inline bool is_believed(struct meta *m)
{
	struct screen_key key = { .addr = m->key.saddr, .zone = m->key.zone, .screen = SCREEN_SYN_COOKIE };
	u64 *since = screen_words.lookup(&key);

	return since && (u32)(cookie_second() - (u32)*since) < COOKIE_SECONDS;
}

static __always_inline void believe(struct meta *m)
{
	struct screen_key key = { .addr = m->key.saddr, .zone = m->key.zone, .screen = SCREEN_SYN_COOKIE };
	u64 now = cookie_second();

	screen_words.update(&key, &now);
}

/* The headers that the kernel's cookies are made of, whatever else the packet has. */
static __always_inline void cookie_tcp(struct tcphdr *tcp, struct meta *m, u8 flags)
{
	__builtin_memset(tcp, 0, sizeof(*tcp));
	tcp->source = m->key.sport;
	tcp->dest = m->key.dport;
	tcp->seq = htonl(m->seq);
	tcp->ack_seq = htonl(m->ack);
	tcp->doff = sizeof(*tcp) / 4;
	tcp->syn = !!(flags & TCP_SYN);
	tcp->ack = !!(flags & TCP_ACK);
}

static __always_inline void cookie_ipv4(struct iphdr *ip, struct meta *m)
{
	__builtin_memset(ip, 0, sizeof(*ip));
	ip->version = 4;
	ip->ihl = sizeof(*ip) / 4;
	ip->protocol = IPPROTO_TCP;
	ip->saddr = m->key.saddr.addr[3];
	ip->daddr = m->key.daddr.addr[3];
}

static __always_inline void cookie_ipv6(struct ipv6hdr *ip6, struct meta *m)
{
	__builtin_memset(ip6, 0, sizeof(*ip6));
	ip6->version = 6;
	ip6->nexthdr = IPPROTO_TCP;
	__builtin_memcpy(&ip6->saddr, m->key.saddr.addr, sizeof(ip6->saddr));
	__builtin_memcpy(&ip6->daddr, m->key.daddr.addr, sizeof(ip6->daddr));
}

/* A cookie for a SYN, or an errno. */
static __always_inline s64 make_cookie(struct meta *m)
{
	struct ipv6hdr ip6;
	struct tcphdr tcp;
	struct iphdr ip;

	cookie_tcp(&tcp, m, TCP_SYN);
	if (m->v6) {
		cookie_ipv6(&ip6, m);
		return bpf_tcp_raw_gen_syncookie_ipv6(&ip6, &tcp, sizeof(tcp));
	}
	cookie_ipv4(&ip, m);
	return bpf_tcp_raw_gen_syncookie_ipv4(&ip, &tcp, sizeof(tcp));
}

static __always_inline bool has_cookie(struct meta *m)
{
	struct ipv6hdr ip6;
	struct tcphdr tcp;
	struct iphdr ip;

	cookie_tcp(&tcp, m, TCP_ACK);
	if (m->v6) {
		cookie_ipv6(&ip6, m);
		return !bpf_tcp_raw_check_syncookie_ipv6(&ip6, &tcp);
	}
	cookie_ipv4(&ip, m);
	return !bpf_tcp_raw_check_syncookie_ipv4(&ip, &tcp);
}

/* An acknowledgement of nothing that is known here. Numbers and flags are those of RFC 4987 3.6: no data, one flag. */
static __always_inline bool may_have_cookie(struct meta *m)
{
	return m->key.protocol == IPPROTO_TCP && !(m->flags & META_LATER) &&
	       (m->tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN)) == TCP_ACK;
}

/* A SYN too many: NEXT if its source has proven to be there. */
static __always_inline u32 demand_cookie(struct meta *m, struct screen *screen)
{
	return screen->flags & SCREEN_ALARM_ONLY || !(screen->wanted & 1 << SCREEN_SYN_COOKIE) ? REASON_SCREEN_SYN_FLOOD
	       : is_believed(m) ? NEXT : REASON_SCREEN_SYN_COOKIE;
}

/* Such a SYN, of whose source nothing is known. */
int stage_cookie(struct xdp_md *ctx)
{
	struct meta *m = meta_of(META_XDP);
	s64 cookie;

	if (!m)
		return drop(ctx, REASON_NO_STAGE);
	cookie = make_cookie(m);
	if (cookie < 0 || is_martian(&m->key.saddr) || is_group(&m->key.daddr))	/* negative: a kernel without cookies */
		return drop(ctx, REASON_SCREEN_SYN_FLOOD);
	describe_arrival(m);
	note(m, REASON_SCREEN_SYN_COOKIE, EVENT_SCREEN);
	m->reason = REASON_SCREEN_SYN_COOKIE;
	return answer_tcp(ctx, m, TCP_SYN | TCP_ACK, cookie, m->seq + 1);
}
