/* SPDX-License-Identifier: GPL-2.0
 *
 * The first packet of a flow: may it open one, where does destination NAT lead it, and by which route?
 */
#define NPTV6_WORDS	8	/* of 16 bits, in an address */
#define NPTV6_SUBNET	3	/* the word that takes up the difference of prefixes of NPTV6_SHORT bits at most */
#define NPTV6_SHORT	48
#define NPTV6_NO_WORD	0xffff	/* minus zero */
#define EMBEDDED_GAP	8	/* the octet that no IPv4 address is in, behind prefixes that are shorter than EMBEDDED_WHOLE */
#define EMBEDDED_WHOLE	96
#define SOURCE_AT	8	/* offsets into an IPv6 header */
#define DESTINATION_AT	24

/* The first `prefixlen` bits of `to`, the rest of `a`. */
static __always_inline void put_prefix(struct address *a, const struct address *to, u32 prefixlen)
{
	u32 word;

#pragma unroll
	for (word = 0; word < 4; word++) {
		u32 bits = prefixlen > word * 32 ? prefixlen - word * 32 : 0;
		u32 mask = bits >= 32 ? 0xffffffff : ~(0xffffffffU >> bits);

		a->addr[word] = (to->addr[word] & htonl(mask)) | (a->addr[word] & ~htonl(mask));
	}
}

/* Another prefix, and the sum of all words as before, so that no checksum changes (RFC 6296 3.4 to 3.7): the word behind
 * 48 bits takes up the difference, or the first one of the interface identifier that has not all bits set.
 * False if there is none: 0xffff and 0 are the same to a sum, and would become the same address. */
static __always_inline bool put_neutral_prefix(struct address *a, const struct rule_row *row)
{
	u32 at = NPTV6_SUBNET, tries;
	__be16 *words = (__be16 *)a->addr, word;

	if (row->prefixlen > NPTV6_SHORT) {
		at++;
#pragma unroll
		for (tries = 0; tries < 3; tries++)
			at += words[at & (NPTV6_WORDS - 1)] == NPTV6_NO_WORD;
	}
	at &= NPTV6_WORDS - 1;
	word = words[at];
	if (word == NPTV6_NO_WORD)
		return false;
	put_prefix(a, &row->to, row->prefixlen);
	word = fold((u64)word + row->adjustment);
	words[at] = word == NPTV6_NO_WORD ? 0 : word;
	return true;
}

/* Place of the n-th octet of an IPv4 address behind a prefix of that many bits: octet 8 is left out (RFC 6052 2.2). */
static __always_inline u32 embedded_at(u32 prefixlen, u32 n)
{
	u32 at = prefixlen / 8 + n;

	if (at >= EMBEDDED_GAP && prefixlen < EMBEDDED_WHOLE)
		at++;
	return at & (sizeof(struct address) - 1);
}

static __always_inline void embed(struct address *a, u32 prefixlen, __be32 ipv4)
{
	u8 *octets = (u8 *)a->addr, *four = (u8 *)&ipv4;
	u32 n;

#pragma unroll
	for (n = 0; n < sizeof(ipv4); n++)
		octets[embedded_at(prefixlen, n)] = four[n];
}

/* A flow into IPv4 (RFC 6146 3.5). NEXT, or why there is none. */
static __always_inline u32 begin_nat64(struct meta *m, const struct rule_row *row)
{
	u8 *octets = (u8 *)m->key.daddr.addr, *four = (u8 *)&m->daddr.addr[3];
	u32 n;

	if (!has_ports(m->key.protocol) && !is_icmp(m))
		return REASON_NAT64_PROTOCOL;
	m->flags |= META_NAT64;
	m->embedded = row->prefixlen;
	m->nat64_pool = row->flags & ROW_INTERFACE ? NO_ROW : row->pool;
#pragma unroll
	for (n = 0; n < sizeof(__be32); n++)
		four[n] = octets[embedded_at(row->prefixlen, n)];
	m->daddr.addr[0] = 0;
	m->daddr.addr[1] = 0;
	m->daddr.addr[2] = htonl(V4_MAPPED);
	return is_martian(&m->daddr) ? REASON_NAT64_ADDRESS : NEXT;
}

/* NEXT, or why the packet's destination cannot be translated. */
static __always_inline u32 translate_destination(struct meta *m)
{
	struct rule_row *row = row_of(m->bank, TABLE_DNAT, first_match(m, TABLE_DNAT, (u32)m->key.zone * MAX_ZONES, &m->key.daddr));

	m->dnat_rule = 0;
	if (!row)
		return NEXT;
	m->dnat_rule = row->rule;
	if (row->action == NAT_REFUSE)
		return REASON_NAT64_ADDRESS;
	if (row->action == NAT_NAT64)
		return begin_nat64(m, row);
	if (row->action == NAT_NPTV6)
		return put_neutral_prefix(&m->daddr, row) ? NEXT : REASON_NPTV6_UNMAPPABLE;
	put_prefix(&m->daddr, &row->to, row->prefixlen);
	if (row->port && has_ports(m->key.protocol)) {
		m->code = ntohs(m->key.dport) - ntohs(row->first_port) + ntohs(row->port);
		m->dport = htons(m->code);
	}
	return NEXT;
}

/* RFC 6296 3.7: parameter problem, `pointer` is where the address is. */
static __always_inline int unmappable(struct xdp_md *ctx, struct meta *m, u16 pointer)
{
	return answer_icmp(ctx, m, ICMP6_PARAMETER, 0, pointer, REASON_NPTV6_UNMAPPABLE);
}

/* NEXT, or why such a packet opens nothing. */
static __always_inline u32 may_open(struct meta *m)
{
	if (is_icmp(m) && !is_icmp_request(m->v6, m->code >> 8))
		return REASON_ICMP_UNSOLICITED;
	if (m->key.protocol == IPPROTO_TCP && m->in_flags & PORT_SYN_CHECK &&
	    (m->tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN)) != TCP_SYN)
		return REASON_TCP_NOT_SYN;
	return NEXT;
}

/* A flow that no policy (XFRM) protects as it came in may be protected as what source NAT makes of it. */
static __always_inline bool may_enter_translated(struct meta *m)
{
	u32 bank = m->bank;
	struct ruleset *rules;

	if ((m->flags & (META_FAR | META_INTO)) != META_FAR)
		return false;
	rules = rulesets.lookup(&bank);
	return m->flags & META_NAT64 || (rules && rules->tables[TABLE_SNAT].words);
}

int stage_new(struct xdp_md *ctx)
{
	struct meta *m = meta_of(META_XDP);
	u32 reason;

	if (!m)
		return drop(ctx, REASON_NO_STAGE);
	if (m->flags & META_LATER)	/* its session ended meanwhile */
		return drop(ctx, REASON_FRAGMENT_UNKNOWN);
	if (m->in_flags & (PORT_TRANSLATED | PORT_POOLS)) {
		if (m->in_flags & PORT_TRANSLATED)
			return drop(ctx, REASON_TRANSLATOR_UNKNOWN);
		if (is_to_translate(m))
			return translate_in(ctx, m);
	}
	if (m->in_flags & PORT_SCREEN_NEW && !(m->flags & META_SCREENED))
		return go(ctx, STAGE_SCREEN_NEW);
	remain(m);
	if (is_martian(&m->key.saddr))
		return drop(ctx, REASON_MARTIAN_SOURCE);
	if (is_own_answer(ctx, m))
		return deliver(ctx, m, REASON_HOST_SOCKET);
	if (is_clear_of_protected(m))
		return drop(ctx, REASON_CLEAR_OF_PROTECTED);
	reason = may_open(m);
	if (reason == REASON_TCP_NOT_SYN && m->in_flags & PORT_TCP_RESET && !(m->tcp_flags & TCP_RST))
		return answer_icmp(ctx, m, ANSWER_RESET, 0, 0, reason);
	if (reason != NEXT)
		return drop(ctx, reason);
	reason = translate_destination(m);
	if (reason == REASON_NPTV6_UNMAPPABLE)
		return unmappable(ctx, m, DESTINATION_AT);
	if (reason != NEXT)
		return drop(ctx, reason);
	reason = route(ctx, m);
	if (reason == ROUTE_LOCAL) {
		if (m->flags & META_NAT64)	/* nobody would translate the answers of this machine */
			return drop(ctx, REASON_NAT64_ADDRESS);
		if (is_ipsec(m->key.protocol, m->dport))
			return pass(ctx, REASON_HOST_IKE);
		m->flags |= META_TO_SELF;
	} else if (reason == NEXT) {
		reason = into_tunnel(m);
	}
	if (reason != NEXT && reason != ROUTE_LOCAL)
		return no_route(ctx, m, reason);
	m->flags |= META_LOOKED;
	if (may_enter_translated(m))
		return go(ctx, STAGE_TUNNEL_NAT);
	return police(ctx, m, false);
}

/* A later fragment goes the way of its first one, or to this machine, whose kernel sorts it out. */
int stage_fragment(struct xdp_md *ctx)
{
	struct meta *m = meta_of(META_XDP);
	struct fragment_key key = {};
	struct fragment *first;

	if (!m)
		return drop(ctx, REASON_NO_STAGE);
	key.saddr = m->key.saddr;
	key.daddr = m->key.daddr;
	key.id = m->fragment_id;
	key.zone = m->key.zone;
	key.protocol = m->v6 ? 0 : m->key.protocol;
	first = fragments.lookup(&key);
	if (first && first->seen_ns + FRAGMENT_SECONDS * SECOND_NS >= bpf_ktime_get_coarse_ns()) {
		m->key = first->key;
		return go(ctx, STAGE_FLOW);
	}
	if (is_to_translate(m))
		return translate_in(ctx, m);
	remain(m);
	if (route(ctx, m) == ROUTE_LOCAL) {
		if (is_ipsec_to_us(m))
			return pass(ctx, REASON_LOCAL_FRAGMENT);
		return deliver(ctx, m, REASON_LOCAL_FRAGMENT);
	}
	return drop(ctx, REASON_FRAGMENT_UNKNOWN);
}
