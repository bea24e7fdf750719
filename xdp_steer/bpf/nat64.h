/* SPDX-License-Identifier: GPL-2.0
 *
 * NAT64 (RFC 6146): packets of a session whose directions are of different families become one of the other (RFC 7915).
 * What is behind the IP headers does not move, the frame grows or shrinks before it.
 *
 * XDP cannot make two frames of one. An IPv4 packet that is too long for the IPv6 network is therefore answered with
 * fragmentation needed, whether it asks not to be fragmented or not.
 */
#define CROSSING	20	/* bytes that an IPv6 header is longer than an IPv4 header */
#define FRAGMENT_HEADER	8
#define LEAST_MTU6	1280	/* RFC 8200 5 */
#define MAY_FRAGMENT	1260	/* an IPv4 packet up to that length may be fragmented: no sender can make it shorter */
#define ICMP_ECHO	8
#define ICMP_REPLY	0
#define ICMP6_ECHO	128
#define ICMP6_REPLY	129
#define ICMP_SOURCE_ROUTE_FAILED	5
#define OPTION_LOOSE_ROUTE	131
#define OPTION_STRICT_ROUTE	137
#define MAX_FRAME	9216	/* bytes that are summed at most */
#define LINK_OCTETS	(sizeof(struct ethhdr) + VLAN_OCTETS)

/* What IP says beside addresses, in the terms of either family. */
struct carried {
	u8 traffic_class;
	u8 hops;
	u8 protocol;		/* of the family that it becomes */
	bool fragmented;	/* a fragment, or one that could be */
	__be16 place;		/* offset << 3 | more, as in a fragment header */
	__be32 id;
	u16 payload;		/* bytes behind the headers */
};

static __always_inline void put_carried4(struct iphdr *ip, const struct carried *c, __be32 saddr, __be32 daddr)
{
	u16 length = sizeof(*ip) + c->payload, place = ntohs(c->place);
	bool whole = !c->fragmented && length > MAY_FRAGMENT;

	ip->version = 4;
	ip->ihl = sizeof(*ip) / 4;
	ip->tos = c->traffic_class;
	ip->tot_len = htons(length);
	ip->id = htons(ntohl(c->id));	/* the lower half */
	ip->frag_off = htons(place >> 3 | (place & IP6_MORE_FRAGMENTS ? IP_MORE_FRAGMENTS : 0) | (whole ? IP_DONT_FRAGMENT : 0));
	ip->ttl = c->hops;
	ip->protocol = c->protocol;
	ip->check = 0;
	ip->saddr = saddr;
	ip->daddr = daddr;
	ip->check = ~fold((u64)htons(0x4500 | c->traffic_class) + ip->tot_len + ip->id + ip->frag_off +
			  htons(c->hops << 8 | c->protocol) + saddr + daddr);
}

static __always_inline void put_carried6(struct ipv6hdr *ip6, const struct carried *c, const struct address *saddr,
					 const struct address *daddr)
{
	*(__be32 *)ip6 = htonl(6U << 28 | (u32)c->traffic_class << 20);
	ip6->payload_len = htons(c->payload + (c->fragmented ? FRAGMENT_HEADER : 0));
	ip6->nexthdr = c->fragmented ? IPPROTO_FRAGMENT : c->protocol;
	ip6->hop_limit = c->hops;
	__builtin_memcpy(&ip6->saddr, saddr->addr, sizeof(ip6->saddr));
	__builtin_memcpy(&ip6->daddr, daddr->addr, sizeof(ip6->daddr));
}

static __always_inline void put_fragment(struct ip6_fragment *fragment, const struct carried *c)
{
	fragment->next = c->protocol;
	fragment->reserved = 0;
	fragment->offset = c->place;
	fragment->id = c->id;
}

/* From an IPv4 header. */
static __always_inline void carry4(struct carried *c, const struct iphdr *ip)
{
	u16 place = ntohs(ip->frag_off), length = ntohs(ip->tot_len), header = ip->ihl * 4;

	c->traffic_class = ip->tos;
	c->hops = ip->ttl;
	c->protocol = crossed(ip->protocol);
	c->fragmented = place & (IP_MORE_FRAGMENTS | IP_FRAGMENT_OFFSET);
	c->place = htons(place << 3 | (place & IP_MORE_FRAGMENTS ? IP6_MORE_FRAGMENTS : 0));
	c->id = htonl(ntohs(ip->id));
	c->payload = length > header ? length - header : 0;
}

/* From an IPv6 header whose chain `inner` has been walked to the end. Without a fragment header the identification is
 * anything if the packet may be fragmented. */
static __always_inline bool carry6(struct carried *c, void *data, void *end, const struct inner *inner)
{
	struct ip6_fragment *fragment = data + (inner->fragment & OFFSET_MASK);
	u32 headers = inner->l4 - inner->l3, length;
	struct ipv6hdr *ip6 = data + (inner->l3 & OFFSET_MASK);

	if ((void *)(ip6 + 1) > end)
		return false;
	length = sizeof(*ip6) + ntohs(ip6->payload_len);
	c->traffic_class = ntohl(*(__be32 *)ip6) >> 20;
	c->hops = ip6->hop_limit;
	c->protocol = crossed(inner->protocol);
	c->payload = length > headers ? length - headers : 0;
	c->fragmented = inner->fragment;
	c->place = 0;
	c->id = 0;
	if (!c->fragmented)
		return true;
	if ((void *)(fragment + 1) > end)
		return false;
	c->place = fragment->offset & htons(IP6_FRAGMENT_OFFSET | IP6_MORE_FRAGMENTS);
	c->id = fragment->id;
	return true;
}

/* The frame grows by `octets` in front (or shrinks), its link header is moved and gets the EtherType of the other family. */
static __always_inline bool move_link(struct xdp_md *ctx, struct meta *m, int octets)
{
	__be16 protocol = m->v6 ? htons(ETH_P_IP) : htons(ETH_P_IPV6);
	void *data = (void *)(long)ctx->data;
	u8 head[LINK_OCTETS];

	if (data + sizeof(head) > (void *)(long)ctx->data_end)
		return false;
	__builtin_memcpy(head, data, sizeof(head));
	if (bpf_xdp_adjust_head(ctx, -octets))
		return false;
	data = (void *)(long)ctx->data;
	if (data + sizeof(head) > (void *)(long)ctx->data_end)
		return false;
	__builtin_memcpy(data, head, sizeof(struct ethhdr));
	if (m->shape & SHAPE_TAGGED) {
		__builtin_memcpy(data + sizeof(struct ethhdr), head + sizeof(struct ethhdr), VLAN_OCTETS);
		((struct vlan_tag *)(data + sizeof(struct ethhdr)))->protocol = protocol;
	} else {
		((struct ethhdr *)data)->h_proto = protocol;
	}
	return true;
}

static __always_inline u64 icmp6_pseudo_sum(const struct address *a, const struct address *b, u16 octets)
{
	return address_sum(a) + address_sum(b) + htons(ICMP6_PROTOCOL) + htons(octets);
}

/* Of UDP over IPv4 without a checksum, which IPv6 does not know (RFC 7915 4.5): the sum of all, new ports and addresses in. */
static __always_inline __be16 sum_udp(struct xdp_md *ctx, struct meta *m, struct udphdr *udp, u16 payload, u64 ports)
{
	u16 octets = ntohs(udp->len), sum;
	__be16 length = udp->len;

	if (octets < sizeof(*udp) || octets > payload)
		octets = payload;
	sum = ~fold(sum_of(ctx, m->l4, octets, MAX_FRAME) + ports + address_sum(&m->saddr) + address_sum(&m->daddr) +
		    htons(IPPROTO_UDP) + htons(octets));
	return sum ? sum : 0xffff;
}

/* Ports and checksums while the frame is as it arrived. NEXT, or why it cannot be translated. */
static __always_inline u32 cross_l4(struct xdp_md *ctx, struct meta *m, const struct carried *c)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	u64 ports = difference16(m->key.sport, m->sport) + difference16(m->key.dport, m->dport), addresses;
	void *l4 = data + (m->l4 & OFFSET_MASK);
	struct tcp_header *tcp = l4;
	struct udphdr *udp = l4;
	struct icmp_header *icmp = l4;
	__be16 old, checksum;

	addresses = (u16)~fold(address_sum(&m->key.saddr) + address_sum(&m->key.daddr)) + address_sum(&m->saddr) +
		    address_sum(&m->daddr);
	if (is_icmp(m)) {
		if (c->place)	/* its sum has the length of the whole in it, which no fragment tells */
			return REASON_NAT64_FRAGMENT;
		if ((void *)(icmp + 1) > end)
			return REASON_MALFORMED;
		old = *(__be16 *)icmp;
		if (m->v6 && (icmp->type == ICMP6_ECHO || icmp->type == ICMP6_REPLY))
			icmp->type = icmp->type == ICMP6_ECHO ? ICMP_ECHO : ICMP_REPLY;
		else if (!m->v6 && (icmp->type == ICMP_ECHO || icmp->type == ICMP_REPLY))
			icmp->type = icmp->type == ICMP_ECHO ? ICMP6_ECHO : ICMP6_REPLY;
		else
			return REASON_NAT64_PROTOCOL;
		addresses = m->v6 ? (u16)~fold(icmp6_pseudo_sum(&m->key.saddr, &m->key.daddr, c->payload))
				  : icmp6_pseudo_sum(&m->saddr, &m->daddr, c->payload);
		icmp->checksum = changed(icmp->checksum, addresses + difference16(old, *(__be16 *)icmp) +
							 difference16(icmp->id, m->sport));
		icmp->id = m->sport;
		return NEXT;
	}
	if (m->flags & META_LATER)
		return NEXT;
	if (m->key.protocol == IPPROTO_TCP) {
		if ((void *)(tcp + 1) > end)
			return REASON_MALFORMED;
		if (is_partial(m, tcp->checksum))
			m->flags |= META_PARTIAL;
		fix(m, &tcp->checksum, addresses, ports);
		tcp->source = m->sport;
		tcp->dest = m->dport;
		return NEXT;
	}
	if ((void *)(udp + 1) > end)
		return REASON_MALFORMED;
	checksum = udp->check;
	if (checksum) {
		if (is_partial(m, checksum))
			m->flags |= META_PARTIAL;
		fix(m, &checksum, addresses, ports);
		if (!checksum)
			checksum = 0xffff;
	} else if (!m->v6) {
		if (c->place || c->payload > MAX_FRAME)
			return REASON_NAT64_CHECKSUM;
		checksum = sum_udp(ctx, m, udp, c->payload, ports);
	}
	udp->check = checksum;
	udp->source = m->sport;
	udp->dest = m->dport;
	return NEXT;
}

/* drop(), for what has changed its length. The kernel (6.18) refuses what LLVM makes of many differences of pointers. */
static __always_inline int drop_frame(u32 reason, u64 frame)
{
	count_verdict(reason, frame, 1);
	return XDP_DROP;
}

/* After the translation: out, as leave_by() does it. `frame` are the bytes that came. */
static __always_inline int leave_crossed(struct xdp_md *ctx, struct meta *m, u16 length, u16 l4, u64 frame)
{
	m->v6 = !m->v6;
	m->length = length;
	m->l4 = l4;
	if (m->mss && m->key.protocol == IPPROTO_TCP && m->tcp_flags & TCP_SYN)
		clamp_mss(ctx, m);
	if (!(m->flags & META_ROUTED) || !(m->out_flags & PORT_REDIRECT) || m->flags & META_PARTIAL ||
	    (m->mtu && length > m->mtu)) {
		count_verdict(REASON_TO_KERNEL, frame, 1);
		return XDP_PASS;
	}
	return redirect(ctx, m, frame);
}

int stage_nat64_to_ipv4(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct meta *m = meta_of(META_XDP);
	struct inner chain = {};
	struct carried c = {};
	struct ipv6hdr *ip6;
	struct iphdr *ip;
	u64 frame = end - data;
	u32 l3, reason;
	u16 length;

	if (!m)
		return drop(ctx, REASON_NO_STAGE);
	l3 = m->l3 & 0x1f;
	ip6 = data + l3;
	if ((void *)(ip6 + 1) > end)
		return drop_frame(REASON_MALFORMED, frame);
	chain.l3 = l3;
	chain.l4 = l3 + sizeof(*ip6);
	chain.protocol = ip6->nexthdr;
	if (!skip_extensions(data, end, &chain) || !carry6(&c, data, end, &chain))
		return drop_frame(REASON_MALFORMED, frame);
	if (chain.segments_left)
		return answer_icmp(ctx, m, ICMP6_PARAMETER, 0, chain.segments_left - l3, REASON_NAT64_SOURCE_ROUTE);
	length = sizeof(*ip) + c.payload;
	if (m->mtu && length > m->mtu && !c.fragmented && length > MAY_FRAGMENT)
		return answer_icmp(ctx, m, ICMP6_TOO_BIG, 0,
				   m->mtu + CROSSING > LEAST_MTU6 ? m->mtu + CROSSING : LEAST_MTU6, REASON_TOO_BIG);
	if (!c.fragmented && length <= MAY_FRAGMENT)
		c.id = bpf_get_prandom_u32();
	reason = cross_l4(ctx, m, &c);
	if (reason != NEXT)
		return drop_frame(reason, frame);
	if (!move_link(ctx, m, (int)sizeof(*ip) - (int)(m->l4 - m->l3)))
		return drop_frame(REASON_MALFORMED, frame);
	ip = (void *)(long)ctx->data + l3;
	if ((void *)(ip + 1) > (void *)(long)ctx->data_end)
		return drop_frame(REASON_MALFORMED, frame);
	put_carried4(ip, &c, m->saddr.addr[3], m->daddr.addr[3]);
	return leave_crossed(ctx, m, length, l3 + sizeof(*ip), frame);
}

/* A source route that has not come to its end (RFC 7915 4.1). The place is kept in the record: the verifier (6.18 too)
 * would follow every way to come to every place otherwise. */
static __always_inline bool is_source_routed(struct xdp_md *ctx, struct meta *m)
{
	volatile u16 *place = &m->option_at;
	u32 at, i;
	u8 *option;

	*place = (m->l3 & 0x1f) + sizeof(struct iphdr);
	for (i = 0; i < 2 * MAX_OPTIONS; i++) {
		at = *place & 0x7f;
		if (at + 3 > m->l4)
			return false;
		option = (void *)(long)ctx->data + at;
		if ((void *)(option + 3) > (void *)(long)ctx->data_end || option[0] == OPTION_END)
			return false;
		if (option[0] == OPTION_NOP) {
			*place = at + 1;
			continue;
		}
		if (option[1] < 2)
			return false;
		if (option[0] == OPTION_LOOSE_ROUTE || option[0] == OPTION_STRICT_ROUTE)
			return option[2] <= option[1];	/* the pointer is beyond the last address when all are used */
		*place = at + option[1];
	}
	return false;
}

int stage_nat64_to_ipv6(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct meta *m = meta_of(META_XDP);
	struct ip6_fragment *fragment;
	u64 frame = end - data;
	struct carried c = {};
	struct ipv6hdr *ip6;
	u32 l3, header, reason;
	struct iphdr *ip;
	u32 length;

	if (!m)
		return drop(ctx, REASON_NO_STAGE);
	l3 = m->l3 & 0x1f;
	ip = data + l3;
	if ((void *)(ip + 1) > end)
		return drop_frame(REASON_MALFORMED, frame);
	carry4(&c, ip);
	if (m->shape & SHAPE_OPTIONS && is_source_routed(ctx, m))
		return answer_icmp(ctx, m, ICMP_UNREACHABLE, ICMP_SOURCE_ROUTE_FAILED, 0, REASON_NAT64_SOURCE_ROUTE);
	header = sizeof(*ip6) + (c.fragmented ? FRAGMENT_HEADER : 0);
	length = header + c.payload;
	if (length > MTU_LIMIT)
		return drop_frame(REASON_TOO_BIG, frame);
	if (m->mtu && length > m->mtu)
		return answer_icmp(ctx, m, ICMP_UNREACHABLE, ICMP_FRAGMENTATION_NEEDED, m->mtu - (header - sizeof(*ip)),
				   REASON_TOO_BIG);
	reason = cross_l4(ctx, m, &c);
	if (reason != NEXT)
		return drop_frame(reason, frame);
	if (!move_link(ctx, m, (int)header - (int)(m->l4 - m->l3)))
		return drop_frame(REASON_MALFORMED, frame);
	ip6 = (void *)(long)ctx->data + l3;
	if ((void *)(ip6 + 1) > (void *)(long)ctx->data_end)
		return drop_frame(REASON_MALFORMED, frame);
	put_carried6(ip6, &c, &m->saddr, &m->daddr);
	if (c.fragmented) {
		fragment = (void *)(ip6 + 1);
		if ((void *)(fragment + 1) > (void *)(long)ctx->data_end)
			return drop_frame(REASON_MALFORMED, frame);
		put_fragment(fragment, &c);
	}
	return leave_crossed(ctx, m, length, l3 + header, frame);
}
