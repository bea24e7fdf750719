/* SPDX-License-Identifier: GPL-2.0
 *
 * Pools of VPP. A flow of such a pool has a session as if nothing were translated; its packets go to VPP by a veth pair,
 * with a VLAN tag that names the pool, and come back translated by the tag of the outside. What the other side sends to an
 * address of VPP's goes there by the tag of the outside, and comes back by that of the pool, with the addresses of the
 * session. VPP decides about nothing.
 */
#define MOST_SUMMED	1536	/* bytes behind the IP header, a multiple of SUM_CHUNK; TRANSLATOR_MTU is less */
#define ECHO_REQUEST	8

/* The pool of VPP, as its tag, that an address is of; 0: of none. */
static __always_inline u32 translator_of(u32 bank, const struct address *a)
{
	return prefix_class(bank, TRANSLATOR_SIDE, a);
}

static __always_inline struct port *port_of_pool(u32 bank, u32 pool)
{
	return port_of(control_value(CONTROL_TRANSLATOR_PORT), pool, bank);
}

static __always_inline void count_pool(u32 tag, u64 flows)
{
	struct pool_count *count = pool_counts.lookup(&tag);

	if (!count)
		return;
	count->flows += flows;
	count->packets++;
}

static __always_inline void count_refused(u32 tag)
{
	struct pool_count *count = pool_counts.lookup(&tag);

	if (count)
		count->refused++;
}

/* A packet of a session that is there. */
static __always_inline void count_for_pool(struct session *s)
{
	if (s->embedded && !(s->flags & SESSION_NAT64))
		count_pool(s->embedded, 0);
}

/* Whose the new flows of a pool are just now: user space decides for those that are VPP's at times. */
static __always_inline bool is_with_vpp(u32 translator)
{
	u32 tag = translator & ~POOL_AUTO, *vpp;

	if (!(translator & POOL_AUTO))
		return true;
	vpp = pool_engines.lookup(&tag);
	return vpp && *vpp;
}

/* NEXT if VPP still has what it has for the session. One that is older than VPP's table is over. The other direction comes
 * by VPP alone. */
static __always_inline u32 translator_step(struct meta *m, struct session *s, bool *over)
{
	u64 since = control_value(CONTROL_TRANSLATOR);

	if (!since)
		return REASON_TRANSLATOR_AWAY;
	if (s->created_ns < since) {
		*over = true;
		return NEXT;
	}
	if (s->flags & SESSION_REVERSE)
		return m->in_flags & PORT_TRANSLATED ? NEXT : REASON_TRANSLATOR_PASSED;
	m->flags |= META_TRANSLATOR;
	m->embedded = s->embedded;
	return NEXT;
}

/* Does VPP translate a new flow that source NAT gives to a pool of its? The rest is XDP's, with addresses of its own: while VPP
 * or the pool are not for it, other protocols, IPv4 options, and what goes to an address of VPP's itself. */
static __always_inline bool is_for_translator(struct meta *m, u32 translator)
{
	if (!control_value(CONTROL_TRANSLATOR) || m->shape & SHAPE_OPTIONS || !is_with_vpp(translator))
		return false;
	if (!has_ports(m->key.protocol) && !(m->key.protocol == IPPROTO_ICMP && m->code >> 8 == ECHO_REQUEST))
		return false;
	return !translator_of(m->bank, &m->daddr);
}

/* A packet of no session that comes from where the answers of a pool of VPP's come from, to an address of it. */
static __always_inline bool is_to_translate(struct meta *m)
{
	struct port *port;
	u32 pool;

	if (!(m->in_flags & PORT_POOLS))
		return false;
	pool = translator_of(m->bank, &m->key.daddr);
	port = pool ? port_of_pool(m->bank, pool) : NULL;
	return port && port->zone == m->key.zone && !local_addresses.lookup(&m->key.daddr);
}

static __always_inline int translate_in(struct xdp_md *ctx, struct meta *m)
{
	m->embedded = TRANSLATOR_OUTSIDE;
	m->mtu = 0;
	m->flags &= ~META_NAT;
	return go(ctx, STAGE_TRANSLATE);
}
