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

/* A flow was let out in clear, and a policy (XFRM) protects now what it becomes, or what it is without its translation. It
 * ends, so that its next packet is judged by the zone of the tunnels. */
static __always_inline bool turns_into_tunnel(struct meta *m, u16 zone)
{
	return m->flags & META_INTO ? m->out_zone != zone : is_overtaken(m);
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
	s = m->flags & META_SESSION ? sessions.lookup(&m->key) : NULL;
	if (!(m->flags & META_LOOKED)) {
		zone = m->out_zone;
		reason = route(ctx, m);
		if (reason == NEXT)
			reason = into_tunnel(m);
		if (reason == NEXT && s && !(s->flags & SESSION_REVERSE) && turns_into_tunnel(m, zone)) {
			end_session(m, s, bpf_ktime_get_coarse_ns());
			return drop(ctx, REASON_ZONE_CHANGED);
		}
		if (reason == ROUTE_LOCAL || (reason == NEXT && m->out_zone != zone))
			return drop(ctx, REASON_ZONE_CHANGED);
		if (reason != NEXT)
			return no_route(ctx, m, reason);
	}
	if (s)
		keep_route(m, s);
	return leave_by(ctx, m, wants_clamp(m));
}
