/* SPDX-License-Identifier: GPL-2.0
 *
 * The forward stage: the route of a packet that may go on, kept with its session, and out.
 */
static __always_inline void keep_route(struct meta *m, struct session *s)
{
	if (!(m->flags & META_ROUTED) || !(m->out_flags & PORT_REDIRECT)) {
		s->out_ifindex = 0;
		return;
	}
	s->fib_generation = control_value(CONTROL_FIB_GENERATION);
	s->fib_ns = bpf_ktime_get_coarse_ns();
	s->out_vid = m->out_vid;
	s->mtu = m->mtu;
	__builtin_memcpy(s->dmac, m->dmac, sizeof(s->dmac));
	__builtin_memcpy(s->smac, m->smac, sizeof(s->smac));
	s->out_ifindex = m->out_ifindex;
}

static __always_inline bool wants_clamp(struct meta *m)
{
	return m->mss && m->key.protocol == IPPROTO_TCP && m->tcp_flags & TCP_SYN;
}

int stage_forward(struct xdp_md *ctx)
{
	struct meta *m = meta_of(META_XDP);
	struct session *s;
	u32 reason;
	u16 zone;

	if (!m)
		return drop(ctx, REASON_NO_STAGE);
	if (m->flags & META_TO_SELF) {
		if (!(m->in_flags & PORT_HOST_FILTER) &&
		    rewrite((void *)(long)ctx->data, (void *)(long)ctx->data_end, m) != NEXT)
			return drop(ctx, REASON_MALFORMED);
		return deliver(ctx, m, REASON_HOST);
	}
	if (!(m->flags & META_LOOKED)) {
		zone = m->out_zone;
		reason = route(ctx, m);
		if (reason == NEXT)
			reason = into_tunnel(m);
		if (reason == ROUTE_LOCAL || (reason == NEXT && m->out_zone != zone))
			return drop(ctx, REASON_ZONE_CHANGED);
		if (reason != NEXT)
			return no_route(ctx, m, reason);
	}
	s = m->flags & META_SESSION ? sessions.lookup(&m->key) : NULL;
	if (s)
		keep_route(m, s);
	return leave_by(ctx, m, wants_clamp(m));
}
