/* SPDX-License-Identifier: GPL-2.0
 *
 * ICMP errors through NAT64, both ways: type, code and what they point at (RFC 7915 4.2, 5.2), and the packet that they
 * quote, whose headers become those that its sender knows. All headers lie before the quoted L4 header, which does not
 * move. Its own checksum stays as it is, as in other errors.
 */
#define NO_ERROR		0xffff	/* no counterpart */
#define LEAST_MTU4		68	/* RFC 791 3.2 */
#define ICMP_HOST		1	/* codes of unreachable */
#define ICMP_PROTOCOL		2
#define ICMP_PORT		3
#define ICMP_HOST_PROHIBITED	10
#define ICMP_PRECEDENCE		15
#define ICMP_PARAMETER		12
#define ICMP6_PORT		4
#define ICMP6_ADDRESS		3
#define ICMP6_NEXT_HEADER	1	/* code of a parameter problem */
#define NEXT_HEADER_AT		6	/* offsets into an IPv6 header */
#define HOP_LIMIT_AT		7
#define PAYLOAD_LENGTH_AT	4

/* What an error becomes: type << 8 | code, and the word behind the checksum in host order. */
struct crossed_error {
	u32 kind;
	u32 word;
};

/* Sizes that paths are likely to take, for routers that do not tell theirs (RFC 1191 7). */
static __always_inline u32 plateau(u32 length)
{
	if (length > 32000)
		return 32000;
	if (length > 17914)
		return 17914;
	if (length > 8166)
		return 8166;
	if (length > 4352)
		return 4352;
	if (length > 2002)
		return 2002;
	return length > 1492 ? 1492 : LEAST_MTU6 - CROSSING;
}

static __always_inline u32 pointer_to_ipv6(u32 pointer)
{
	if (pointer < 2)
		return pointer;
	if (pointer < 4)
		return PAYLOAD_LENGTH_AT;
	if (pointer == 8)
		return HOP_LIMIT_AT;
	if (pointer == 9)
		return NEXT_HEADER_AT;
	if (pointer >= 12 && pointer < 20)
		return pointer < 16 ? SOURCE_AT : DESTINATION_AT;
	return NO_ERROR;
}

static __always_inline u32 pointer_to_ipv4(u32 pointer)
{
	if (pointer < 2)
		return pointer;
	if (pointer == PAYLOAD_LENGTH_AT || pointer == PAYLOAD_LENGTH_AT + 1)
		return 2;
	if (pointer == NEXT_HEADER_AT)
		return 9;
	if (pointer == HOP_LIMIT_AT)
		return 8;
	if (pointer >= SOURCE_AT && pointer < 40)
		return pointer < DESTINATION_AT ? 12 : 16;
	return NO_ERROR;
}

static __always_inline void unreachable_to_ipv6(struct crossed_error *e, u32 code)
{
	e->kind = ICMP6_UNREACHABLE << 8 | ICMP6_NO_ROUTE;
	if (code == ICMP_PROTOCOL) {
		e->kind = ICMP6_PARAMETER << 8 | ICMP6_NEXT_HEADER;
		e->word = NEXT_HEADER_AT;
	} else if (code == ICMP_PORT) {
		e->kind = ICMP6_UNREACHABLE << 8 | ICMP6_PORT;
	} else if (code == 9 || code == ICMP_HOST_PROHIBITED || code == ICMP_PROHIBITED || code == ICMP_PRECEDENCE) {
		e->kind = ICMP6_UNREACHABLE << 8 | ICMP6_PROHIBITED;
	} else if (code > 12) {
		e->kind = NO_ERROR;
	}
}

/* `quoted` is the length that the quoted packet had. */
static __always_inline void error_to_ipv6(struct crossed_error *e, struct meta *m, u32 word, u32 quoted)
{
	u32 type = m->code >> 8, code = m->code & 0xff, mtu = word & 0xffff;

	e->word = 0;
	e->kind = NO_ERROR;
	if (type == ICMP_UNREACHABLE && code == ICMP_FRAGMENTATION_NEEDED) {
		e->kind = ICMP6_TOO_BIG << 8;
		e->word = (mtu ? mtu : plateau(quoted)) + CROSSING;
		if (m->mtu && e->word > m->mtu)
			e->word = m->mtu;
		if (e->word < LEAST_MTU6)
			e->word = LEAST_MTU6;
	} else if (type == ICMP_UNREACHABLE) {
		unreachable_to_ipv6(e, code);
	} else if (type == ICMP_TIME_EXCEEDED) {
		e->kind = ICMP6_TIME_EXCEEDED << 8 | code;
	} else if (type == ICMP_PARAMETER && (code == 0 || code == 2)) {
		e->word = pointer_to_ipv6(word >> 24);
		e->kind = e->word == NO_ERROR ? NO_ERROR : ICMP6_PARAMETER << 8;
	}
}

/* `longer`: bytes that the headers of the quoted packet are longer than in IPv4. */
static __always_inline void error_to_ipv4(struct crossed_error *e, struct meta *m, u32 word, u32 longer)
{
	u32 type = m->code >> 8, code = m->code & 0xff, mtu;

	e->word = 0;
	e->kind = NO_ERROR;
	if (type == ICMP6_UNREACHABLE && code <= ICMP6_PORT) {
		e->kind = ICMP_UNREACHABLE << 8 | ICMP_HOST;
		if (code == ICMP6_PROHIBITED)
			e->kind = ICMP_UNREACHABLE << 8 | ICMP_HOST_PROHIBITED;
		else if (code == ICMP6_PORT)
			e->kind = ICMP_UNREACHABLE << 8 | ICMP_PORT;
	} else if (type == ICMP6_TOO_BIG) {
		mtu = word > longer + LEAST_MTU4 ? word - longer : LEAST_MTU4;
		if (m->mtu && mtu > m->mtu)
			mtu = m->mtu;
		e->kind = ICMP_UNREACHABLE << 8 | ICMP_FRAGMENTATION_NEEDED;
		e->word = mtu > MTU_LIMIT ? MTU_LIMIT : mtu;
	} else if (type == ICMP6_TIME_EXCEEDED) {
		e->kind = ICMP_TIME_EXCEEDED << 8 | code;
	} else if (type == ICMP6_PARAMETER && code == ICMP6_NEXT_HEADER) {
		e->kind = ICMP_UNREACHABLE << 8 | ICMP_PROTOCOL;
	} else if (type == ICMP6_PARAMETER && code == 0) {
		e->word = pointer_to_ipv4(word) << 24;
		e->kind = e->word == (u32)NO_ERROR << 24 ? NO_ERROR : ICMP_PARAMETER << 8;
	}
}

/* Ports or identifier of the quoted packet, and its type of echo; the difference that they make. */
static __always_inline u64 cross_quoted(void *data, void *end, struct meta *m, struct inner *inner)
{
	struct icmp_header *query = data + (inner->l4 & OFFSET_MASK);
	struct udphdr *ports = (void *)query;
	u64 difference;
	__be16 old;

	if (has_ports(inner->protocol) && !inner->later && (void *)ports + QUOTED_PORTS <= end) {
		difference = difference16(ports->source, m->dport) + difference16(ports->dest, m->sport);
		ports->source = m->dport;
		ports->dest = m->sport;
		return difference;
	}
	if (!inner->query || (void *)query + QUOTED_ID > end)
		return 0;
	old = *(__be16 *)query;
	if (m->v6)
		query->type = query->type == ICMP6_ECHO ? ICMP_ECHO : ICMP_REPLY;
	else if (query->type == ICMP_ECHO || query->type == ICMP_REPLY)
		query->type = query->type == ICMP_ECHO ? ICMP6_ECHO : ICMP6_REPLY;
	difference = difference16(old, *(__be16 *)query) + difference16(query->id, m->dport);
	query->id = m->dport;
	return difference;
}

struct headers4 {
	struct iphdr ip;
	struct icmp_header icmp;
	struct iphdr quoted;
};

struct headers6 {
	struct ipv6hdr ip;
	struct icmp_header icmp;
	struct ipv6hdr quoted;
	struct ip6_fragment fragment;
};

static __always_inline u8 traffic_class(void *l3, void *end, bool v6)
{
	struct iphdr *ip = l3;

	if ((void *)(ip + 1) > end)
		return 0;
	return v6 ? ntohl(*(__be32 *)l3) >> 20 : ip->tos;
}

static __always_inline void put_error(struct icmp_header *icmp, const struct crossed_error *e)
{
	*(__be16 *)icmp = htons(e->kind);
	icmp->checksum = 0;
	*(__be32 *)&icmp->id = htonl(e->word);
}

/* Where the error comes from, as IPv4 sees it, is where the whole of the inside comes from: what sent it has no address
 * there (RFC 6146 3.5.3). `sum` is what the checksum covers beside headers. */
static __always_inline int error_in_ipv4(struct xdp_md *ctx, struct meta *m, struct inner *inner, u64 sum, u64 frame)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	u32 l3 = m->l3 & 0x1f, headers = inner->l4 - inner->l3, longer;
	struct icmp_header *old = data + (m->l4 & OFFSET_MASK);
	struct crossed_error e;
	struct carried outer = {}, quoted = {};
	struct headers4 *h, made = {};
	u32 length;

	if ((void *)(old + 1) > end || !carry6(&quoted, data, end, inner))
		return drop_frame(REASON_MALFORMED, frame);
	longer = CROSSING + (inner->fragment ? FRAGMENT_HEADER : 0);
	error_to_ipv4(&e, m, ntohl(*(__be32 *)&old->id), longer);
	if (e.kind == NO_ERROR)
		return drop_frame(REASON_NAT64_PROTOCOL, frame);
	outer.payload = m->length - (m->l4 - m->l3) - headers + sizeof(made.quoted);
	length = sizeof(made.ip) + outer.payload;
	if (m->mtu && length > m->mtu)
		return drop_frame(REASON_TOO_BIG, frame);
	outer.traffic_class = traffic_class(data + l3, end, true);
	outer.hops = m->ttl;
	outer.protocol = IPPROTO_ICMP;
	outer.id = length <= MAY_FRAGMENT ? bpf_get_prandom_u32() : 0;
	put_carried4(&made.ip, &outer, m->saddr.addr[3], m->daddr.addr[3]);
	put_carried4(&made.quoted, &quoted, m->daddr.addr[3], m->saddr.addr[3]);
	put_error(&made.icmp, &e);
	sum += (u32)bpf_csum_diff(NULL, 0, (void *)&made.icmp, sizeof(made.icmp) + sizeof(made.quoted), 0);
	made.icmp.checksum = ~fold(sum);
	if (!move_link(ctx, m, (int)sizeof(made) - (int)(inner->l4 - l3)))
		return drop_frame(REASON_MALFORMED, frame);
	h = (void *)(long)ctx->data + l3;
	if ((void *)(h + 1) > (void *)(long)ctx->data_end)
		return drop_frame(REASON_MALFORMED, frame);
	*h = made;
	return leave_crossed(ctx, m, length, l3 + sizeof(made.ip), frame);
}

static __always_inline int error_in_ipv6(struct xdp_md *ctx, struct meta *m, struct inner *inner, u64 sum, u64 frame)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	u32 l3 = m->l3 & 0x1f, headers = inner->l4 - inner->l3, length, made_octets;
	struct icmp_header *old = data + (m->l4 & OFFSET_MASK);
	struct iphdr *ip = data + (inner->l3 & OFFSET_MASK);
	struct carried outer = {}, quoted = {};
	struct headers6 made = {};
	struct address from = m->saddr;
	struct crossed_error e;
	void *h;

	if ((void *)(old + 1) > end || (void *)(ip + 1) > end)
		return drop_frame(REASON_MALFORMED, frame);
	error_to_ipv6(&e, m, ntohl(*(__be32 *)&old->id), ntohs(ip->tot_len));
	if (e.kind == NO_ERROR)
		return drop_frame(REASON_NAT64_PROTOCOL, frame);
	carry4(&quoted, ip);
	if (!same_address(&m->key.saddr, &inner->daddr))
		embed(&from, m->embedded, m->key.saddr.addr[3]);
	made_octets = sizeof(made) - (quoted.fragmented ? 0 : FRAGMENT_HEADER);
	outer.payload = m->length - (m->l4 - m->l3) - headers + (made_octets - sizeof(made.ip) - sizeof(made.icmp));
	length = sizeof(made.ip) + outer.payload;
	if (m->mtu && length > m->mtu)
		return drop_frame(REASON_TOO_BIG, frame);
	outer.traffic_class = traffic_class(data + l3, end, false);
	outer.hops = m->ttl;
	outer.protocol = ICMP6_PROTOCOL;
	put_carried6(&made.ip, &outer, &from, &m->daddr);
	put_carried6(&made.quoted, &quoted, &m->daddr, &m->saddr);
	if (quoted.fragmented)
		put_fragment(&made.fragment, &quoted);
	put_error(&made.icmp, &e);
	sum += (u32)bpf_csum_diff(NULL, 0, (void *)&made.icmp, sizeof(made) - sizeof(made.ip), 0) +
	       icmp6_pseudo_sum(&from, &m->daddr, outer.payload);
	made.icmp.checksum = ~fold(sum);
	if (!move_link(ctx, m, (int)made_octets - (int)(inner->l4 - l3)))
		return drop_frame(REASON_MALFORMED, frame);
	h = (void *)(long)ctx->data + l3;
	if (h + sizeof(made) - FRAGMENT_HEADER > (void *)(long)ctx->data_end)
		return drop_frame(REASON_MALFORMED, frame);
	__builtin_memcpy(h, &made, sizeof(made) - FRAGMENT_HEADER);
	if (quoted.fragmented) {
		if (h + sizeof(made) > (void *)(long)ctx->data_end)
			return drop_frame(REASON_MALFORMED, frame);
		__builtin_memcpy(h + sizeof(made) - FRAGMENT_HEADER, &made.fragment, FRAGMENT_HEADER);
	}
	return leave_crossed(ctx, m, length, l3 + sizeof(made.ip), frame);
}

int stage_nat64_error(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct meta *m = meta_of(META_XDP);
	struct inner inner = {};
	u64 frame = end - data, sum;
	u32 octets;

	if (!m)
		return drop(ctx, REASON_NO_STAGE);
	if (!parse_inner(data, end, m, &inner))
		return drop_frame(REASON_MALFORMED, frame);
	if (m->shape & SHAPE_FRAGMENT)
		return drop_frame(REASON_NAT64_FRAGMENT, frame);
	/* What the checksum covers behind the headers is what is missing to a whole sum. */
	octets = inner.l4 - m->l4;
	if (octets > ANSWER_IPV6)
		return drop_frame(REASON_MALFORMED, frame);
	sum = sum_of(ctx, m->l4, octets, ANSWER_IPV6);
	if (m->v6)
		sum += icmp6_pseudo_sum(&m->key.saddr, &m->key.daddr, m->length - (m->l4 - m->l3));
	sum = (u16)~fold(sum);
	data = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	sum += cross_quoted(data, end, m, &inner);
	return m->v6 ? error_in_ipv4(ctx, m, &inner, sum, frame) : error_in_ipv6(ctx, m, &inner, sum, frame);
}
