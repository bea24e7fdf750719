/* SPDX-License-Identifier: GPL-2.0
 *
 * A new flow that no policy of the kernel (XFRM) protects as it came in, though some cover where it goes. The kernel looks
 * at what source NAT has made of it: with the translation into the tunnels' zone it may fit. If it does, it goes there; if
 * not, it goes in clear, with the translation for that. What it becomes in the end is held against the policies once more
 * when its session is made: other ports are tried then, and other pools.
 */
/* The best policy of a list that protects something: its zone is the one to ask for. NULL: none does. */
static __always_inline struct tunnel *first_protecting(u32 list)
{
	struct tunnel_key key = { .list = list };
	struct tunnel *t;
	u32 n;

#pragma nounroll
	for (n = 0; n < MAX_TUNNELS_OF_NET; n++) {
		key.n = n;
		t = tunnels.lookup(&key);
		if (!t || t->action == TUNNEL_PROTECT)
			return t;
	}
	return NULL;
}

/* The tunnel that the flow came out of, 0: none. It is not the one to send it back into, though both sites may have the
 * same addresses. */
static __always_inline u32 came_by(struct meta *m)
{
	struct tunnel *t = m->in_flags & PORT_TUNNEL ? tunnel_in(m) : NULL;

	return t ? t->reqid : 0;
}

/* Would the flow be protected as what source NAT into that zone makes of it? The record is as before in the end. */
static __always_inline bool fits_translated(struct meta *m, u32 list, struct tunnel *first, u16 zone)
{
	struct source source = { .addresses = 1, .low = DYNAMIC_LOW, .high = DYNAMIC_HIGH };
	u32 seed = control_value(CONTROL_SEED), flags = m->flags;
	u16 was = m->out_zone;
	__be16 dport = m->dport;
	u32 reqid = came_by(m);
	struct tunnel *t = NULL;

	m->out_zone = zone;
	if (choose_source(m, &source) == NEXT && m->flags & META_NAT && source.addresses) {
		if (source.tried)
			candidate(m, &source, flow_hash(&m->key, seed), seed, 0);
		t = protecting(m, list, &m->saddr, m->sport);
	}
	m->out_zone = was;
	m->flags = flags;
	m->saddr = m->key.saddr;
	m->sport = m->key.sport;
	m->dport = dport;
	return t && t->zone == first->zone && (!reqid || t->reqid != reqid);
}

int stage_tunnel_nat(struct xdp_md *ctx)
{
	struct meta *m = meta_of(META_XDP);
	struct tunnel *first;
	struct port *port;
	u32 list;

	if (!m)
		return drop(ctx, REASON_NO_STAGE);
	list = tunnel_list(TUNNEL_OUT, &m->daddr);
	first = list ? first_protecting(list) : NULL;
	port = first ? port_of_tunnel(m, first) : NULL;
	if (port && fits_translated(m, list, first, port->zone))
		enter_tunnel(m, port);
	return go(ctx, STAGE_POLICY);
}
