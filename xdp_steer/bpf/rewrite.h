/* SPDX-License-Identifier: GPL-2.0
 *
 * The one place where packets are changed: "desired state" of the record into the bytes, then out by the egress port.
 */
#define OFFSET_MASK	0x3fff	/* beyond any header, tells the verifier so */
#define OPTION_END	0
#define OPTION_NOP	1
#define OPTION_MSS	2
#define OPTION_MSS_SIZE	4
#define MAX_OPTIONS	20	/* NOPs included; TCP has 40 bytes for them */
#define VLAN_OCTETS	4

/* A checksum that was left to hardware holds the sum of the pseudo header alone, not complemented. */
static __always_inline bool is_partial(struct meta *m, __be16 checksum)
{
	u64 sum;

	if (!(m->in_flags & PORT_PARTIAL))
		return false;
	sum = address_sum(&m->key.saddr) + address_sum(&m->key.daddr) + htons(m->length - (m->l4 - m->l3)) +
	      htons(m->key.protocol);
	return fold(sum) == checksum;
}

static __always_inline void fix(struct meta *m, __be16 *checksum, u64 addresses, u64 ports)
{
	if (m->flags & META_PARTIAL)
		*checksum = fold(*checksum + addresses);
	else
		*checksum = changed(*checksum, addresses + ports);
}

static __always_inline void fix_l4(struct meta *m, __be16 *checksum)
{
	if (m->flags & META_PARTIAL)
		*checksum = ~changed16(~*checksum, m->address_change);
	else
		*checksum = changed16(*checksum, m->l4_change);
}

/* Of the L4 header, addresses being already right in the IP header. Sets META_PARTIAL. */
static __always_inline u32 rewrite_l4(void *data, void *end, struct meta *m, bool nat)
{
	void *l4 = data + (m->l4 & OFFSET_MASK);
	struct tcp_header *tcp = l4;
	struct udphdr *udp = l4;
	struct icmp_header *icmp = l4;

	if (m->key.protocol == IPPROTO_TCP) {
		if ((void *)(tcp + 1) > end)
			return REASON_MALFORMED;
		if (is_partial(m, tcp->checksum))
			m->flags |= META_PARTIAL;
		if (!nat)
			return NEXT;
		fix_l4(m, &tcp->checksum);
		tcp->source = m->sport;
		tcp->dest = m->dport;
	} else if (m->key.protocol == IPPROTO_UDP) {
		if ((void *)(udp + 1) > end)
			return REASON_MALFORMED;
		if (udp->check && is_partial(m, udp->check))
			m->flags |= META_PARTIAL;
		if (!nat)
			return NEXT;
		if (udp->check) {
			fix_l4(m, &udp->check);
			if (!udp->check)
				udp->check = 0xffff;
		}
		udp->source = m->sport;
		udp->dest = m->dport;
	} else if (nat && is_icmp(m)) {
		if ((void *)(icmp + 1) > end)
			return REASON_MALFORMED;
		if (m->v6)
			icmp->checksum = changed16(icmp->checksum, m->address_change);
		if (m->sport != m->key.sport) {
			icmp->checksum = changed(icmp->checksum, difference16(m->key.sport, m->sport));
			icmp->id = m->sport;
		}
	}
	return NEXT;
}

/* What a translation does to checksums: found once for a session, not for every packet. */
static __always_inline void sum_changes(struct meta *m)
{
	u64 addresses = address_difference(&m->key.saddr, &m->saddr, m->v6) +
			address_difference(&m->key.daddr, &m->daddr, m->v6);

	m->address_change = fold(addresses);
	m->l4_change = fold(addresses + difference16(m->key.sport, m->sport) + difference16(m->key.dport, m->dport));
}

/* Addresses, ports and checksums. NEXT, or MALFORMED for what cannot happen after the parser. */
static __always_inline u32 rewrite(void *data, void *end, struct meta *m)
{
	void *l3 = data + (m->l3 & OFFSET_MASK);
	bool nat = m->flags & META_NAT;
	struct ipv6hdr *ip6 = l3;
	struct iphdr *ip = l3;

	if (nat) {
		if (m->v6) {
			if ((void *)(ip6 + 1) > end)
				return REASON_MALFORMED;
			__builtin_memcpy(&ip6->saddr, m->saddr.addr, sizeof(ip6->saddr));
			__builtin_memcpy(&ip6->daddr, m->daddr.addr, sizeof(ip6->daddr));
		} else {
			if ((void *)(ip + 1) > end)
				return REASON_MALFORMED;
			ip->check = changed16(ip->check, m->address_change);
			ip->saddr = m->saddr.addr[3];
			ip->daddr = m->daddr.addr[3];
		}
	}
	if (m->flags & META_LATER || (!nat && !(m->in_flags & PORT_PARTIAL)))
		return NEXT;
	return rewrite_l4(data, end, m, nat);
}

/* Lower the MSS of a TCP packet with SYN to the cap in the record. What is no option list is left alone. The place is kept
 * in the record: the verifier (6.18 too) would follow every way to come to every place otherwise. */
static __always_inline void clamp_mss(struct xdp_md *ctx, struct meta *m)
{
	volatile u16 *place = &m->option_at;
	u32 octets, at, i;
	struct tcp_header *tcp;
	u8 *option;

	tcp = (void *)(long)ctx->data + (m->l4 & OFFSET_MASK);
	if ((void *)(tcp + 1) > (void *)(long)ctx->data_end)
		return;
	octets = (tcp->offset >> 4) * 4;
	*place = sizeof(struct tcp_header);
	for (i = 0; i < MAX_OPTIONS; i++) {
		at = *place;
		if (at + OPTION_MSS_SIZE > octets || at > 60)
			return;
		option = (void *)tcp + at;
		if ((void *)(option + OPTION_MSS_SIZE) > (void *)(long)ctx->data_end)
			return;
		if (option[0] == OPTION_END)
			return;
		if (option[0] == OPTION_MSS && option[1] == OPTION_MSS_SIZE) {
			__be16 old = *(__be16 *)(option + 2), new = htons(m->mss);

			if (ntohs(old) <= m->mss)
				return;
			*(__be16 *)(option + 2) = new;
			/* At an odd offset its two bytes belong to two words of the sum. */
			if (at & 1) {
				old = old << 8 | old >> 8;
				new = new << 8 | new >> 8;
			}
			if (!(m->flags & META_PARTIAL))
				tcp->checksum = changed(tcp->checksum, difference16(old, new));
			return;
		}
		if (option[0] == OPTION_NOP)
			*place = at + 1;
		else if (option[1] < 2)
			return;
		else
			*place = at + option[1];
	}
}

static __always_inline void lower_ttl(void *l3, void *end, struct meta *m)
{
	struct ipv6hdr *ip6 = l3;
	struct iphdr *ip = l3;
	__be16 *word, old;

	if (m->v6) {
		if ((void *)(ip6 + 1) <= end)
			ip6->hop_limit--;
		return;
	}
	if ((void *)(ip + 1) > end)
		return;
	word = (void *)&ip->ttl;
	old = *word;
	ip->ttl--;
	ip->check = changed(ip->check, difference16(old, *word));
}

/* The Ethernet header of the egress port, with its tag or none; the ingress tag goes. NEXT, or why not. */
static __always_inline u32 put_ethernet(struct xdp_md *ctx, struct meta *m)
{
	bool tagged = m->shape & SHAPE_TAGGED;
	struct vlan_tag *tag;
	struct ethhdr *eth;
	__be16 protocol;

	if (tagged && !m->out_vid && bpf_xdp_adjust_head(ctx, VLAN_OCTETS))
		return REASON_NO_STAGE;
	if (!tagged && m->out_vid && bpf_xdp_adjust_head(ctx, -VLAN_OCTETS))
		return REASON_NO_STAGE;
	eth = (void *)(long)ctx->data;
	tag = (void *)(eth + 1);
	if ((void *)(tag + 1) > (void *)(long)ctx->data_end)
		return REASON_MALFORMED;
	__builtin_memcpy(eth->h_dest, m->dmac, ETH_ALEN);
	__builtin_memcpy(eth->h_source, m->smac, ETH_ALEN);
	protocol = m->v6 ? htons(ETH_P_IPV6) : htons(ETH_P_IP);
	if (m->out_vid) {
		eth->h_proto = htons(ETH_P_8021Q);
		tag->tci = htons(m->out_vid);
		tag->protocol = protocol;
	} else {
		eth->h_proto = protocol;
	}
	return NEXT;
}

/* Out by the egress port. `octets` are counted. */
static __always_inline int redirect(struct xdp_md *ctx, struct meta *m, u64 octets)
{
	u32 reason;

	lower_ttl((void *)(long)ctx->data + (m->l3 & OFFSET_MASK), (void *)(long)ctx->data_end, m);
	reason = put_ethernet(ctx, m);
	if (reason != NEXT)
		return drop(ctx, reason);
	count_verdict(REASON_FORWARDED, octets, 1);
	return bpf_redirect(m->out_ifindex, 0);
}

/* The kernel knows nothing of the tags by which VPP sends. */
static __always_inline bool take_tag(struct xdp_md *ctx)
{
	u8 macs[2 * ETH_ALEN];

	return !bpf_xdp_load_bytes(ctx, 0, macs, sizeof(macs)) && !bpf_xdp_adjust_head(ctx, VLAN_OCTETS) &&
	       !bpf_xdp_store_bytes(ctx, 0, macs, sizeof(macs));
}

static __always_inline int leave_to_kernel(struct xdp_md *ctx, struct meta *m)
{
	u64 octets = (void *)(long)ctx->data_end - (void *)(long)ctx->data;

	if (m->in_flags & PORT_TRANSLATED && m->shape & SHAPE_TAGGED && !take_tag(ctx))
		return drop(ctx, REASON_NO_STAGE);
	count_verdict(REASON_TO_KERNEL, octets, 1);
	return XDP_PASS;
}

/* The last step of every packet that goes on: checks of the route, then the change, then out. */
static __always_inline int leave_by(struct xdp_md *ctx, struct meta *m, bool clamp)
{
	if (m->ttl <= 1)
		return answer_icmp(ctx, m, m->v6 ? ICMP6_TIME_EXCEEDED : ICMP_TIME_EXCEEDED, 0, 0, REASON_TTL_EXPIRED);
	if (m->flags & (META_NAT64 | META_TRANSLATOR)) {
		if (m->flags & META_TRANSLATOR)
			return go(ctx, STAGE_TRANSLATE);
		return go(ctx, m->flags & META_ERROR ? STAGE_NAT64_ERROR
						     : m->v6 ? STAGE_NAT64_TO_IPV4 : STAGE_NAT64_TO_IPV6);
	}
	if (m->mtu && m->length > m->mtu) {
		if (m->v6)
			return answer_icmp(ctx, m, ICMP6_TOO_BIG, 0, m->mtu, REASON_TOO_BIG);
		if (m->shape & SHAPE_DF)
			return answer_icmp(ctx, m, ICMP_UNREACHABLE, ICMP_FRAGMENTATION_NEEDED, m->mtu, REASON_TOO_BIG);
	}
	if (rewrite((void *)(long)ctx->data, (void *)(long)ctx->data_end, m) != NEXT)
		return drop(ctx, REASON_MALFORMED);
	if (clamp)	/* after rewrite(), which finds out whether the checksum is a partial one */
		clamp_mss(ctx, m);
	if (!(m->flags & META_ROUTED) || !(m->out_flags & PORT_REDIRECT) || m->flags & META_PARTIAL ||
	    (m->mtu && m->length > m->mtu))
		return leave_to_kernel(ctx, m);
	return redirect(ctx, m, (void *)(long)ctx->data_end - (void *)(long)ctx->data);
}
