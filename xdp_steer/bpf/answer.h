/* SPDX-License-Identifier: GPL-2.0
 *
 * The answer stage: a dropped packet becomes the TCP RST or ICMP error that says so, and goes back where it came
 * from, through the same tag. Nobody answers an ICMP error, a later fragment, or what no single host sent or was sent
 * (RFC 1122 3.2.2, RFC 4443 2.4).
 */
#define ANSWER_TTL	64
#define ANSWER_OCTETS	8	/* of the dropped packet behind its IPv4 header */
#define ANSWER_IPV4	68	/* a whole IPv4 header and ANSWER_OCTETS */
#define ANSWER_IPV6	1232	/* of the dropped IPv6 packet: the error fits into 1280 bytes (RFC 4443 2.4 c) */
#define SUM_CHUNK	64	/* bytes that are summed in one call, a power of 2 */

struct icmp_error_header {
	u8 type;
	u8 code;
	__be16 checksum;
	__be16 high;	/* IPv6: MTU, upper half */
	__be16 low;	/* MTU */
};

/* Per CPU; a rate of 0 is no limit. One second's worth may come at once. */
static __always_inline bool may_answer(struct meta *m)
{
	u64 rate = control_value(CONTROL_ANSWER_RATE), now;

	if (!rate)
		return true;
	now = bpf_ktime_get_coarse_ns();
	if (m->answer_ns + SECOND_NS <= now) {
		m->answer_ns = now;
		m->answer_tokens = rate;
	}
	if (!m->answer_tokens)
		return false;
	m->answer_tokens--;
	return true;
}

static __always_inline void swap_macs(struct ethhdr *eth)
{
	u8 mac[ETH_ALEN];

	__builtin_memcpy(mac, eth->h_dest, ETH_ALEN);
	__builtin_memcpy(eth->h_dest, eth->h_source, ETH_ALEN);
	__builtin_memcpy(eth->h_source, mac, ETH_ALEN);
}

static __always_inline void put_ipv4(struct iphdr *ip, const struct address *from, const struct address *to,
				     u8 protocol, u16 length)
{
	u64 sum;

	ip->version = 4;
	ip->ihl = 5;
	ip->tos = 0;
	ip->tot_len = htons(length);
	ip->id = 0;
	ip->frag_off = htons(IP_DONT_FRAGMENT);
	ip->ttl = ANSWER_TTL;
	ip->protocol = protocol;
	ip->check = 0;
	ip->saddr = from->addr[3];
	ip->daddr = to->addr[3];
	sum = htons(0x4500) + ip->tot_len + ip->frag_off + htons(ANSWER_TTL << 8 | protocol) +
	      (u64)ip->saddr + ip->daddr;
	ip->check = ~fold(sum);
}

static __always_inline void put_ipv6(struct ipv6hdr *ip6, const struct address *from, const struct address *to,
				     u8 protocol, u16 payload)
{
	*(__be32 *)ip6 = htonl(6U << 28);
	ip6->payload_len = htons(payload);
	ip6->nexthdr = protocol;
	ip6->hop_limit = ANSWER_TTL;
	__builtin_memcpy(&ip6->saddr, from->addr, sizeof(ip6->saddr));
	__builtin_memcpy(&ip6->daddr, to->addr, sizeof(ip6->daddr));
}

static __always_inline u64 pseudo_sum(const struct address *a, const struct address *b, u8 protocol, u16 length)
{
	return address_sum(a) + address_sum(b) + htons(protocol) + htons(length);
}

/* A TCP packet without data, options and window to who sent this one, which is cut to the headers that it takes. */
static __always_inline int answer_tcp(struct xdp_md *ctx, struct meta *m, u8 flags, u32 seq, u32 ack)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	u32 l3 = m->l3 & OFFSET_MASK, header, frame = end - data;
	struct tcp_header *tcp;

	header = m->v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);
	if (bpf_xdp_adjust_tail(ctx, (int)(l3 + header + sizeof(*tcp)) - (int)frame))
		return drop(ctx, m->reason);
	data = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	tcp = data + l3 + header;
	if (data + sizeof(struct ethhdr) > end || (void *)(tcp + 1) > end)
		return drop(ctx, REASON_MALFORMED);
	swap_macs(data);
	tcp->source = m->key.dport;
	tcp->dest = m->key.sport;
	tcp->seq = htonl(seq);
	tcp->ack = htonl(ack);
	tcp->offset = sizeof(*tcp) / 4 << 4;
	tcp->flags = flags;
	tcp->window = 0;
	tcp->urgent = 0;
	tcp->checksum = ~fold(pseudo_sum(&m->key.daddr, &m->key.saddr, IPPROTO_TCP, sizeof(*tcp)) + tcp->source +
			      tcp->dest + (u64)tcp->seq + tcp->ack + *(__be16 *)&tcp->offset);
	if (m->v6) {
		if (data + l3 + sizeof(struct ipv6hdr) > end)
			return drop(ctx, REASON_MALFORMED);
		put_ipv6(data + l3, &m->key.daddr, &m->key.saddr, IPPROTO_TCP, sizeof(*tcp));
	} else {
		if (data + l3 + sizeof(struct iphdr) > end)
			return drop(ctx, REASON_MALFORMED);
		put_ipv4(data + l3, &m->key.daddr, &m->key.saddr, IPPROTO_TCP, header + sizeof(*tcp));
	}
	count_verdict(m->reason, frame, 1);
	return XDP_TX;
}

/* RFC 9293 3.5.2. */
static __always_inline int answer_reset(struct xdp_md *ctx, struct meta *m)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	u32 l3 = m->l3 & OFFSET_MASK, l4 = m->l4 & OFFSET_MASK, header, payload;
	struct tcp_header *tcp = data + l4;

	if ((void *)(tcp + 1) > end)
		return drop(ctx, REASON_MALFORMED);
	if (m->tcp_flags & TCP_ACK)
		return answer_tcp(ctx, m, TCP_RST, m->ack, 0);
	payload = m->length - (l4 - l3);
	header = (tcp->offset >> 4) * 4;
	payload = payload > header ? payload - header : 0;
	return answer_tcp(ctx, m, TCP_RST | TCP_ACK, 0,
			  m->seq + payload + !!(m->tcp_flags & TCP_SYN) + !!(m->tcp_flags & TCP_FIN));
}

/* Sum of `octets` bytes (`most` at most) of the frame from `offset` on, padded with zeros. Through the stack: the verifier would follow
 * every length on its own if it were the packet that the kernel sums. */
static __always_inline u64 sum_of(struct xdp_md *ctx, u32 offset, u32 octets, u32 most)
{
	__be32 chunk[SUM_CHUNK / sizeof(__be32)];
	u64 sum = 0, left;
	u32 i;

	for (i = 0; i < most && i < octets; i += SUM_CHUNK) {
		left = octets - i < SUM_CHUNK ? octets - i : SUM_CHUNK;
		/* From 1 to SUM_CHUNK: the compiler knows, the verifier is told. */
		asm volatile("" : "+r"(left));
		left = ((left - 1) & (SUM_CHUNK - 1)) + 1;
		__builtin_memset(chunk, 0, sizeof(chunk));
		if (bpf_xdp_load_bytes(ctx, offset + i, chunk, left))
			break;
		sum += (u32)bpf_csum_diff(NULL, 0, chunk, sizeof(chunk), 0);
	}
	return sum;
}

static __always_inline int answer_error(struct xdp_md *ctx, struct meta *m)
{
	u32 l3 = m->l3 & 0x1f, l4 = m->l4 & OFFSET_MASK, header, quoted, frame, grown;
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct address from = m->key.daddr;
	struct icmp_error_header *icmp;
	struct port *port;
	u8 head[20];	/* Ethernet and one tag */
	u64 sum;

	frame = end - data;
	port = port_of(ctx->ingress_ifindex, m->vid, m->bank);
	if (port && m->reason != REASON_POLICY_REJECT && m->reason != REASON_DEFAULT_DENY &&
	    !is_unspecified(m->v6 ? &port->addr6 : &port->addr4))
		from = m->v6 ? port->addr6 : port->addr4;
	header = m->v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);
	quoted = m->v6 ? ANSWER_IPV6 : l4 - l3 + ANSWER_OCTETS;
	if (quoted > m->length)
		quoted = m->length;
	if (quoted > (m->v6 ? ANSWER_IPV6 : ANSWER_IPV4))
		return drop(ctx, m->reason);
	grown = header + sizeof(*icmp);
	if (data + sizeof(struct ethhdr) + VLAN_OCTETS > end)
		return drop(ctx, m->reason);
	__builtin_memcpy(head, data, sizeof(struct ethhdr) + VLAN_OCTETS);
	if (bpf_xdp_adjust_tail(ctx, (int)(l3 + quoted) - (int)frame) || bpf_xdp_adjust_head(ctx, -(int)grown))
		return drop(ctx, m->reason);
	data = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	icmp = data + l3 + header;
	if (data + sizeof(struct ethhdr) + VLAN_OCTETS > end || (void *)(icmp + 1) > end)
		return drop(ctx, REASON_MALFORMED);
	__builtin_memcpy(data, head, sizeof(struct ethhdr));
	if (m->shape & SHAPE_TAGGED)
		__builtin_memcpy(data + sizeof(struct ethhdr), head + sizeof(struct ethhdr), VLAN_OCTETS);
	swap_macs(data);
	icmp->type = m->answer_type;
	icmp->code = m->answer_code;
	icmp->checksum = 0;
	icmp->high = 0;
	icmp->low = htons(m->answer_mtu);
	sum = htons(m->answer_type << 8 | m->answer_code) + icmp->low + sum_of(ctx, l3 + grown, quoted, ANSWER_IPV6);
	if (m->v6) {
		sum += pseudo_sum(&from, &m->key.saddr, ICMP6_PROTOCOL, sizeof(*icmp) + quoted);
		if (data + l3 + sizeof(struct ipv6hdr) > end)
			return drop(ctx, REASON_MALFORMED);
		put_ipv6(data + l3, &from, &m->key.saddr, ICMP6_PROTOCOL, sizeof(*icmp) + quoted);
	} else {
		if (data + l3 + sizeof(struct iphdr) > end)
			return drop(ctx, REASON_MALFORMED);
		put_ipv4(data + l3, &from, &m->key.saddr, IPPROTO_ICMP, header + sizeof(*icmp) + quoted);
	}
	icmp->checksum = ~fold(sum);
	count_verdict(m->reason, frame, 1);
	return XDP_TX;
}

/* RFC 1122 3.2.2: no error about an error. An input filter rejects before they are told from the rest. */
static __always_inline bool is_error(struct meta *m)
{
	return m->flags & META_ERROR || (is_icmp(m) && is_icmp_error(m->v6, m->code >> 8));
}

int stage_answer(struct xdp_md *ctx)
{
	struct meta *m = meta_of(META_XDP);

	if (!m)
		return drop(ctx, REASON_NO_STAGE);
	if (m->flags & META_LATER || is_error(m) || is_group(&m->key.daddr) || is_group(&m->key.saddr) ||
	    is_unspecified(&m->key.saddr) || !may_answer(m))
		return drop(ctx, m->reason);
	return m->answer_type == ANSWER_RESET ? answer_reset(ctx, m) : answer_error(ctx, m);
}
