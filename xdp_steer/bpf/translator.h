/* SPDX-License-Identifier: GPL-2.0
 *
 * The ways to VPP's NAT and back. VPP counts a hop on its way, which is taken back here, so that a packet has one in all.
 */
/* VPP sees finished checksums alone: one that was left to hardware holds the sum of the pseudo header. */
static __always_inline u32 finish_checksum(struct xdp_md *ctx, struct meta *m)
{
	u32 l4 = m->l4 & OFFSET_MASK, octets = m->length - (m->l4 - m->l3);
	u32 at = m->key.protocol == IPPROTO_TCP ? offsetof(struct tcp_header, checksum) : offsetof(struct udphdr, check);
	__be16 checksum;

	if (octets > MOST_SUMMED)
		return REASON_TOO_BIG;
	checksum = ~fold(sum_of(ctx, l4, octets, MOST_SUMMED));
	if (!checksum)
		checksum = 0xffff;
	return bpf_xdp_store_bytes(ctx, l4 + at, &checksum, sizeof(checksum)) ? REASON_MALFORMED : NEXT;
}

static __always_inline int too_long(struct xdp_md *ctx, struct meta *m, u16 mtu)
{
	if (m->shape & SHAPE_DF)
		return answer_icmp(ctx, m, ICMP_UNREACHABLE, ICMP_FRAGMENTATION_NEEDED, mtu, REASON_TOO_BIG);
	return drop(ctx, REASON_TOO_BIG);
}

/* To VPP, by the tag in `m->embedded`. */
int stage_translate(struct xdp_md *ctx)
{
	u64 octets = (void *)(long)ctx->data_end - (void *)(long)ctx->data;
	struct meta *m = meta_of(META_XDP);
	u32 reason;

	if (!m)
		return drop(ctx, REASON_NO_STAGE);
	if (!control_value(CONTROL_TRANSLATOR))
		return drop(ctx, REASON_TRANSLATOR_AWAY);
	if (m->ttl <= 1)
		return answer_icmp(ctx, m, ICMP_TIME_EXCEEDED, 0, 0, REASON_TTL_EXPIRED);
	if (m->shape & SHAPE_OPTIONS)	/* VPP would act upon them itself */
		return drop(ctx, REASON_TRANSLATOR_UNFIT);
	if (m->mtu && m->length > m->mtu && m->shape & SHAPE_DF)
		return too_long(ctx, m, m->mtu);
	if (m->length > TRANSLATOR_MTU)
		return too_long(ctx, m, TRANSLATOR_MTU);
	if (rewrite((void *)(long)ctx->data, (void *)(long)ctx->data_end, m) != NEXT)
		return drop(ctx, REASON_MALFORMED);
	if (wants_clamp(m))
		clamp_mss(ctx, m);
	reason = m->flags & META_PARTIAL ? finish_checksum(ctx, m) : NEXT;
	if (reason != NEXT)
		return drop(ctx, reason);
	m->out_vid = m->embedded;
	__builtin_memcpy(m->dmac, (u8[])TRANSLATOR_MAC, sizeof(m->dmac));
	__builtin_memcpy(m->smac, (u8[])TRANSLATOR_PORT_MAC, sizeof(m->smac));
	reason = put_ethernet(ctx, m);
	if (reason != NEXT)
		return drop(ctx, reason);
	count_verdict(REASON_TRANSLATE, octets, 1);
	return bpf_redirect(control_value(CONTROL_TRANSLATOR_PORT), 0);
}

static __always_inline u32 raise_ttl(struct xdp_md *ctx, struct meta *m)
{
	struct iphdr *ip = (void *)(long)ctx->data + (m->l3 & OFFSET_MASK);
	__be16 *word, old;

	if ((void *)(ip + 1) > (void *)(long)ctx->data_end)
		return REASON_MALFORMED;
	word = (void *)&ip->ttl;
	old = *word;
	ip->ttl++;
	ip->check = changed(ip->check, difference16(old, *word));
	m->ttl++;
	return NEXT;
}

/* Translated, on its way out: it was judged before, and goes where the flow was permitted to go. */
static __always_inline int send_translated(struct xdp_md *ctx, struct meta *m)
{
	u32 pool, reason;
	struct port *port;

	remain(m);
	pool = translator_of(m->bank, &m->key.saddr);
	port = pool ? port_of_pool(m->bank, pool) : NULL;
	if (!port)
		return drop(ctx, REASON_TRANSLATOR_UNKNOWN);
	reason = route(ctx, m);
	if (reason == NEXT)
		reason = into_tunnel(m);
	if (reason == ROUTE_LOCAL || (reason == NEXT && m->out_zone != port->zone && !(m->flags & META_INTO)))
		return drop(ctx, REASON_ZONE_CHANGED);
	if (reason != NEXT)
		return no_route(ctx, m, reason);
	if (m->flags & META_INTO)
		return drop(ctx, REASON_TUNNEL_NAT);
	return leave_by(ctx, m, false);
}

/* From VPP: by the tag of the outside, or by that of a pool, of whose zone it is then. */
int stage_translated(struct xdp_md *ctx)
{
	struct meta *m = meta_of(META_XDP);

	if (!m)
		return drop(ctx, REASON_NO_STAGE);
	if (m->v6 || raise_ttl(ctx, m) != NEXT)
		return drop(ctx, REASON_MALFORMED);
	return m->vid == TRANSLATOR_OUTSIDE ? send_translated(ctx, m) : admit(ctx, m);
}
