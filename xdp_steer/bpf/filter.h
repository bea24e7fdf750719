/* SPDX-License-Identifier: GPL-2.0
 *
 * Filters: what is done with packets one by one, whatever their sessions say. An input filter sees them as they arrive,
 * before screens; the host filter what is for this machine, as it is delivered; an output filter, on TC egress, as they
 * leave. IPsec of this machine and neighbour discovery pass by all of them.
 *
 * The first term that matches decides; what matches none is accepted.
 */
#define DSCP_BITS	0x3f
#define IPV4_DSCP_AT	2	/* how far left in the first 16 bits of the header */
#define IPV6_DSCP_AT	6
#define NO_TCP_FLAGS	256	/* class of what has none, behind all sets of flags */
#define CLASSES_OF_FLAGS	(2 * (DSCP_BITS + 1))	/* where they begin */

static __always_inline u8 dscp_of(const __be16 *ip, bool v6)
{
	return ntohs(*ip) >> (v6 ? IPV6_DSCP_AT : IPV4_DSCP_AT) & DSCP_BITS;
}

/* ECN stays. IPv6 has no checksum that covers it. */
static __always_inline void put_dscp(void *l3, void *end, struct meta *m, u8 dscp)
{
	u32 at = m->v6 ? IPV6_DSCP_AT : IPV4_DSCP_AT;
	struct iphdr *ip = l3;
	__be16 *word = l3, old;

	if ((void *)(ip + 1) > end)
		return;
	old = *word;
	*word = (old & ~htons(DSCP_BITS << at)) | htons((u16)(dscp & DSCP_BITS) << at);
	if (!m->v6)
		ip->check = changed(ip->check, difference16(old, *word));
}

static __always_inline struct bit_row *filter_class(u32 bank, u32 class)
{
	u32 index = bank * MAX_FILTER_CLASSES + class;

	return filter_bits.lookup(&index);
}

/* As first_match(), for the terms of a filter. Ports and ICMP types of a later fragment are unknown: of its protocol only
 * what asks for nothing more matches it. */
static __always_inline u32 first_term(struct meta *m, u32 filter, const struct address *daddr, u8 dscp)
{
	bool later = m->flags & META_LATER, tcp = m->key.protocol == IPPROTO_TCP && !later;
	volatile u32 *place = &m->term;
	u64 bits = 0;
	u32 bank = m->bank, kind = later ? SERVICE_OTHER : service_kind(m->key.protocol), word, flags, words;
	struct bit_row *terms, *service, *source, *destination, *source_port, *marks, *set;
	struct ruleset *rules = rulesets.lookup(&bank);

	if (!rules)
		return NO_ROW;
	words = rules->tables[TABLE_FILTER].words;
	flags = rules->tables[TABLE_FILTER].flags;
	terms = bits_of(bank, TABLE_FILTER, DIM_ZONES, filter * MAX_ZONES);
	service = bits_of(bank, TABLE_FILTER, DIM_SERVICE,
			  service_class(bank, TABLE_FILTER, kind, kind == SERVICE_OTHER ? m->key.protocol : m->code));
	marks = filter_class(bank, 2 * (dscp & DSCP_BITS) + !!(m->shape & (SHAPE_FRAGMENT | SHAPE_LATER)));
	set = filter_class(bank, CLASSES_OF_FLAGS + (tcp ? m->tcp_flags : NO_TCP_FLAGS));
	if (!terms || !service || !marks || !set)
		return NO_ROW;
	source = destination = source_port = terms;
	if (!(flags & TABLE_ANY_SOURCE))
		source = bits_of(bank, TABLE_FILTER, DIM_SOURCE, prefix_class(bank, TABLE_FILTER * 2, &m->key.saddr));
	if (!(flags & TABLE_ANY_DESTINATION))
		destination = bits_of(bank, TABLE_FILTER, DIM_DESTINATION,
				      prefix_class(bank, TABLE_FILTER * 2 + 1, daddr));
	if (!(flags & TABLE_ANY_SOURCE_PORT) && kind <= SERVICE_UDP)
		source_port = bits_of(bank, TABLE_FILTER, DIM_SOURCE_PORT,
				      service_class(bank, TABLE_FILTER, SERVICE_TCP_SOURCE + kind, ntohs(m->key.sport)));
	if (!source || !destination || !source_port)
		return NO_ROW;
	for (word = 0; word < MAX_WORDS; word++) {
		u32 at = word, most = words;

		/* The compiler would count pointers up to another one, which the verifier (6.18 too) would not follow, or words
		 * up to the lesser of both numbers, of which 6.1 would not know an end. */
		asm volatile("" : "+r"(at), "+r"(most));
		if (at >= most)
			break;
		at &= MAX_WORDS - 1;
		bits = terms->words[at] & service->words[at] & source->words[at] & destination->words[at] &
		       source_port->words[at] & marks->words[at] & set->words[at];
		if (bits)
			break;
	}
	if (!bits)
		return NO_ROW;
	/* By way of the record: the verifier (6.18 too) would follow what comes for every word and every bit on its own. */
	*place = word;
	*place = *place * 64 + lowest(bits);
	return *place;
}

/* Events of a term are as many as of a screen at most. */
static __always_inline void tell_of_term(struct meta *m, struct rule_row *row, u32 reason)
{
	u32 rule = row->rule;
	u64 *told = filter_told.lookup(&rule);

	if (!told || tally(told, bpf_ktime_get_coarse_ns() / SECOND_NS, SCREEN_EVENTS) > SCREEN_EVENTS)
		return;
	m->rule = rule;
	report(m, EVENT_FILTER, reason);
}

/* What a filter says of a packet to `daddr` of that many bytes: NEXT, or why it ends here. The record gets the DSCP that
 * the packet is given. */
static __always_inline u32 filter_packet(struct meta *m, u32 filter, const struct address *daddr, u32 octets, u8 dscp)
{
	u32 term = first_term(m, filter, daddr, dscp), index, reason = NEXT;
	struct rule_row *row = row_of(m->bank, TABLE_FILTER, term);
	struct filter_row *more;
	u8 colour;

	m->mark = KEEP_DSCP;
	m->mirror = 0;
	if (!row)
		return NEXT;
	index = m->bank * MAX_ROWS + term;
	more = filter_rows.lookup(&index);
	if (!more)
		return NEXT;
	count_rule(row->rule, octets);
	m->mark = more->mark;
	m->mirror = more->mirror;
	if (row->action != FILTER_ACCEPT)
		reason = row->action == FILTER_REJECT ? REASON_FILTER_REJECT : REASON_FILTER_DISCARD;
	if (more->policer) {
		colour = apply_policer(m->bank, more->policer - 1, octets, dscp);
		if (colour == DISCARD_COLOUR)
			reason = REASON_FILTER_POLICED;
		else if (colour != KEEP_DSCP)
			m->mark = colour;
	}
	if (row->flags & ROW_LOG_OPEN)
		tell_of_term(m, row, reason);
	return reason;
}

/* The frame as it arrived, whatever becomes of it. */
static __always_inline void mirror(struct xdp_md *ctx, struct meta *m)
{
	u64 length = (void *)(long)ctx->data_end - (void *)(long)ctx->data;
	struct copy *copy = copies.ringbuf_reserve(sizeof(struct copy));
	u32 slot = 0;
	u64 *lost;

	if (!copy) {
		lost = copies_lost.lookup(&slot);
		if (lost)
			(*lost)++;
		return;
	}
	length = length < COPY_OCTETS ? length : COPY_OCTETS;
	/* From 1 to COPY_OCTETS: the compiler knows, the verifier is told. */
	asm volatile("" : "+r"(length));
	length = ((length - 1) & (COPY_OCTETS - 1)) + 1;
	copy->ifindex = m->mirror;
	copy->length = length;
	if (bpf_xdp_load_bytes(ctx, 0, copy->frame, length))
		copy->length = 0;
	copies.ringbuf_submit(copy, 0);
}

/* The same of a frame in XDP, its header changed. */
static __always_inline u32 filter_frame(struct xdp_md *ctx, struct meta *m, u32 filter, const struct address *daddr)
{
	void *l3 = (void *)(long)ctx->data + (m->l3 & OFFSET_MASK);
	u32 reason;

	if (l3 + sizeof(__be16) > (void *)(long)ctx->data_end)
		return REASON_MALFORMED;
	reason = filter_packet(m, filter, daddr, m->length, dscp_of(l3, m->v6));
	if (m->mirror)
		mirror(ctx, m);
	if (reason == NEXT && m->mark != KEEP_DSCP)
		put_dscp((void *)(long)ctx->data + (m->l3 & OFFSET_MASK), (void *)(long)ctx->data_end, m, m->mark);
	return reason;
}

/* The end of a packet that a filter does not let pass. */
static __always_inline int filtered(struct xdp_md *ctx, struct meta *m, u32 reason)
{
	return reason == REASON_FILTER_REJECT ? reject(ctx, m, reason) : drop(ctx, reason);
}

int stage_filter(struct xdp_md *ctx)
{
	struct meta *m = meta_of(META_XDP);
	struct port *port;
	u32 reason;

	if (!m)
		return drop(ctx, REASON_NO_STAGE);
	port = arrival_port(ctx, m);
	if (port && port->in_filter && !is_ipsec_to_us(m)) {
		describe_arrival(m);
		reason = filter_frame(ctx, m, port->in_filter, &m->key.daddr);
		if (reason != NEXT)
			return filtered(ctx, m, reason);
	}
	if (m->in_flags & PORT_SCREEN && is_suspect(m))
		return go(ctx, STAGE_SCREEN);
	return admit(ctx, m);
}

/* Before a packet is delivered to this machine, under the reason in the record. Its header is not changed yet. */
int stage_host_filter(struct xdp_md *ctx)
{
	struct meta *m = meta_of(META_XDP);
	u32 bank, reason, passed;
	struct ruleset *rules;

	if (!m)
		return drop(ctx, REASON_NO_STAGE);
	bank = m->bank;
	rules = rulesets.lookup(&bank);
	passed = m->reason;
	if (rules) {
		m->out_zone = ZONE_SELF;
		m->session_id = 0;
		if (has_ports(m->key.protocol))
			m->code = ntohs(m->dport);
		reason = filter_frame(ctx, m, rules->host_filter, &m->daddr);
		if (reason != NEXT)
			return filtered(ctx, m, reason);
	}
	if (rewrite((void *)(long)ctx->data, (void *)(long)ctx->data_end, m) != NEXT)
		return drop(ctx, REASON_MALFORMED);
	return pass(ctx, passed);
}

static __always_inline u32 egress_reason(u32 reason)
{
	return reason == REASON_FILTER_POLICED ? REASON_EGRESS_POLICED : REASON_EGRESS_FILTER;
}

/* Behind all other checks of TC egress, for the reason that they gave. Nobody is answered: the sender sees the drop, or
 * has had its packet forwarded by the kernel so far. */
int stage_egress_filter(struct __sk_buff *skb)
{
	struct meta *m = meta_of(META_TC);
	u32 reason, segments, octets;
	void *l3;

	if (!m)
		return tc_drop(skb, REASON_NO_STAGE);
	l3 = (void *)(long)skb->data + (m->l3 & OFFSET_MASK);
	if (l3 + sizeof(__be16) > (void *)(long)skb->data_end)
		return tc_drop(skb, REASON_EGRESS_FILTER);
	if (m->flags & META_NAT) {
		m->key.saddr = m->saddr;
		m->key.daddr = m->daddr;
		m->key.sport = m->sport;
		m->key.dport = m->dport;
	}
	if (has_ports(m->key.protocol))
		m->code = ntohs(m->key.dport);
	remain(m);
	m->session_id = 0;
	/* What goes onto the wire without the Ethernet headers of its segments. */
	segments = skb->gso_segs ? skb->gso_segs : 1;
	octets = skb->wire_len - segments * m->l3;
	reason = filter_packet(m, m->out_filter, &m->key.daddr, octets, dscp_of(l3, m->v6));
	if (reason != NEXT)
		return tc_drop(skb, egress_reason(reason));
	if (m->mark != KEEP_DSCP)
		put_dscp((void *)(long)skb->data + (m->l3 & OFFSET_MASK), (void *)(long)skb->data_end, m, m->mark);
	return tc_pass(skb, m->reason);
}
