/* SPDX-License-Identifier: GPL-2.0
 *
 * Where a packet leaves by: the kernel's FIB, and the port that its interface is.
 */
#define FAMILY_IPV4	2	/* AF_INET, AF_INET6 */
#define FAMILY_IPV6	10
#define ZONE_SELF	0
#define ROUTE_LOCAL	0xffff	/* no reason: the packet is for this machine */
#define MTU_LIMIT	0xffff

static __always_inline u32 egress_port(struct meta *m, u32 ifindex)
{
	struct port *port = near_port_of(ifindex, 0, m->bank);
	struct vlan_port *vlan;

	m->out_ifindex = ifindex;
	m->out_vid = 0;
	if (!port) {
		vlan = vlan_ports.lookup(&ifindex);
		m->out_ifindex = vlan ? vlan->ifindex : ifindex;
		m->out_vid = vlan ? vlan->vid : 0;
		port = port_of(m->out_ifindex, m->out_vid, m->bank);
	}
	if (!port)
		return REASON_NO_EGRESS_ZONE;
	m->out_zone = port->zone;
	m->out_flags = port->flags;
	m->out_mss = port->mss;
	m->out4 = port->addr4;
	m->out6 = port->addr6;
	return NEXT;
}

/* Fills the out_ fields. NEXT, ROUTE_LOCAL, or why the packet cannot go on; META_ROUTED if the neighbour is known.
 * The length is not given: with one that is too long the kernel does not say which interface it would have been. */
static __always_inline u32 route(struct xdp_md *ctx, struct meta *m)
{
	struct bpf_fib_lookup fib = {};
	u32 reason;
	long found;

	fib.ifindex = m->l3_ifindex;
	fib.l4_protocol = m->key.protocol;
	if (becomes_v6(m)) {
		fib.family = FAMILY_IPV6;
		__builtin_memcpy(fib.ipv6_src, m->v6 ? m->key.saddr.addr : m->saddr.addr, sizeof(fib.ipv6_src));
		__builtin_memcpy(fib.ipv6_dst, m->daddr.addr, sizeof(fib.ipv6_dst));
	} else {
		fib.family = FAMILY_IPV4;
		fib.ipv4_src = m->v6 ? 0 : m->key.saddr.addr[3];	/* of NAT64 it is not known yet */
		fib.ipv4_dst = m->daddr.addr[3];
	}
	m->flags &= ~META_ROUTED;
	m->out_zone = ZONE_SELF;
	m->out_ifindex = 0;
	m->mtu = 0;
	found = bpf_fib_lookup(ctx, &fib, sizeof(fib), 0);
	if (found == BPF_FIB_LKUP_RET_NOT_FWDED)
		return ROUTE_LOCAL;
	if (found == BPF_FIB_LKUP_RET_BLACKHOLE)
		return REASON_ROUTE_BLACKHOLE;
	if (found == BPF_FIB_LKUP_RET_UNREACHABLE || found == BPF_FIB_LKUP_RET_PROHIBIT) {
		m->answer_type = m->v6 ? ICMP6_UNREACHABLE : ICMP_UNREACHABLE;
		m->answer_code = found == BPF_FIB_LKUP_RET_UNREACHABLE
					 ? (m->v6 ? ICMP6_NO_ROUTE : ICMP_HOST_UNREACHABLE)
					 : (m->v6 ? ICMP6_PROHIBITED : ICMP_PROHIBITED);
		return REASON_ROUTE_UNREACHABLE;
	}
	if (found != BPF_FIB_LKUP_RET_SUCCESS && found != BPF_FIB_LKUP_RET_NO_NEIGH)
		return REASON_ROUTE_UNSUPPORTED;
	reason = egress_port(m, fib.ifindex);
	if (reason != NEXT)
		return reason;
	if (found == BPF_FIB_LKUP_RET_SUCCESS) {
		m->flags |= META_ROUTED;
		m->mtu = fib.mtu_result;
		__builtin_memcpy(m->dmac, fib.dmac, sizeof(m->dmac));
		__builtin_memcpy(m->smac, fib.smac, sizeof(m->smac));
	}
	return NEXT;
}

/* The end of a packet that has no route to go by. */
static __always_inline int no_route(struct xdp_md *ctx, struct meta *m, u32 reason)
{
	if (reason == REASON_ROUTE_UNREACHABLE)
		return answer_icmp(ctx, m, m->answer_type, m->answer_code, 0, reason);
	return drop(ctx, reason);
}
