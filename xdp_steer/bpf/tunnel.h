/* SPDX-License-Identifier: GPL-2.0
 *
 * What IPsec of this machine has to do with a clear packet: the selectors of the kernel's policies (XFRM), whoever
 * encrypts and decrypts. "Far" is the peer's side of a selector, "near" is ours.
 *
 * The kernel takes the matching policy of the best priority, however long its prefixes are. So every far network has the
 * list of all policies that cover it, the best one first, and its longest prefix finds the list.
 */
/* The list of the policies that cover a far address, 0: none. */
static __always_inline u32 tunnel_list(u32 side, const struct address *far)
{
	struct tunnel_net net = { .prefixlen = TUNNEL_NET_BITS, .side = side, .far = *far };
	u32 *list = tunnel_nets.lookup(&net);

	return list ? *list : 0;
}

/* The policy of a list for a packet, or NULL if there is none. */
static __always_inline struct tunnel *tunnel_of(u32 list, const struct address *near, __be16 far_port, __be16 near_port,
						u8 protocol)
{
	struct tunnel_key key = { .list = list };
	struct tunnel *t;
	u32 n;

#pragma nounroll
	for (n = 0; n < MAX_TUNNELS_OF_NET; n++) {
		key.n = n;
		t = tunnels.lookup(&key);
		if (!t)
			return NULL;
		if (!((near->addr[0] ^ t->near.addr[0]) & t->mask.addr[0]) &&
		    !((near->addr[1] ^ t->near.addr[1]) & t->mask.addr[1]) &&
		    !((near->addr[2] ^ t->near.addr[2]) & t->mask.addr[2]) &&
		    !((near->addr[3] ^ t->near.addr[3]) & t->mask.addr[3]) &&
		    (!t->protocol || t->protocol == protocol) &&
		    !((near_port ^ t->near_port) & t->near_port_mask) && !((far_port ^ t->far_port) & t->far_port_mask))
			return t;
	}
	return NULL;
}

/* The policy that protects a packet from that source, or NULL. XFRM has the type of ICMP in place of the source port and
 * the code in place of the destination port. */
static __always_inline struct tunnel *protecting(struct meta *m, u32 list, const struct address *saddr, __be16 sport)
{
	u8 protocol = m->flags & META_NAT64 ? crossed(m->key.protocol) : m->key.protocol;
	bool icmp = is_icmp(m);
	struct tunnel *t;

	t = tunnel_of(list, saddr, icmp ? htons(m->code & 0xff) : m->dport, icmp ? htons(m->code >> 8) : sport, protocol);
	return t && t->action == TUNNEL_PROTECT ? t : NULL;
}

static __always_inline struct tunnel *tunnel_in(struct meta *m)
{
	__be16 sport = is_icmp(m) ? htons(m->code >> 8) : m->key.sport;
	__be16 dport = is_icmp(m) ? htons(m->code & 0xff) : m->key.dport;
	u32 list = tunnel_list(TUNNEL_IN, &m->key.saddr);

	return list ? tunnel_of(list, &m->key.daddr, sport, dport, m->key.protocol) : NULL;
}

static __always_inline struct port *port_of_tunnel(struct meta *m, struct tunnel *t)
{
	return port_of(control_value(CONTROL_TUNNEL_PORT), t->zone, m->bank);
}

/* A packet that the kernel is going to encrypt leaves into the zone of the tunnels, and the kernel has to send it. */
static __always_inline void enter_tunnel(struct meta *m, struct port *port)
{
	m->out_zone = port->zone;
	m->out_mss = port->mss;
	m->out_flags = port->flags & ~PORT_REDIRECT;
	m->flags &= ~META_ROUTED;
	m->flags |= META_INTO;
}

/* After route(): does what the packet becomes, as far as that is known, go into a tunnel? NEXT, or NO_EGRESS_ZONE if no
 * zone has tunnels. */
static __always_inline u32 into_tunnel(struct meta *m)
{
	u32 list = m->out_flags & PORT_TUNNEL ? 0 : tunnel_list(TUNNEL_OUT, &m->daddr);
	struct tunnel *t;
	struct port *port;

	if (!list)
		return NEXT;
	m->flags |= META_FAR;
	t = protecting(m, list, &m->saddr, m->sport);
	if (!t)
		return NEXT;
	port = port_of_tunnel(m, t);
	if (!port)
		return REASON_NO_EGRESS_ZONE;
	enter_tunnel(m, port);
	return NEXT;
}

/* What goes out of a flow in clear, translated, would go into a tunnel if it were not: of policies that came after it. */
static __always_inline bool is_overtaken(struct meta *m)
{
	u32 list;

	if ((m->flags & (META_NAT | META_FAR | META_INTO)) != (META_NAT | META_FAR))
		return false;
	list = tunnel_list(TUNNEL_OUT, &m->daddr);
	return list && protecting(m, list, &m->key.saddr, m->key.sport);
}

/* RFC 4301 5.2: what a policy protects must not come in clear. IPsec itself does, for tunnels between hosts. */
static __always_inline bool is_clear_of_protected(struct meta *m)
{
	struct tunnel *t;

	if (m->in_flags & PORT_TUNNEL || is_ipsec(m->key.protocol, m->key.dport))
		return false;
	t = tunnel_in(m);
	return t && t->action == TUNNEL_PROTECT;
}

/* Connections of this machine into tunnels of the kernel: it sends their packets encrypted, so no session tells of them.
 * A socket of that very connection does; whatever only listens must be permitted by a policy. */
static __always_inline bool has_socket(struct xdp_md *ctx, struct meta *m)
{
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *sk;
	u32 size = sizeof(tuple.ipv4);
	bool found;

	if (m->v6) {
		__builtin_memcpy(tuple.ipv6.saddr, m->key.saddr.addr, sizeof(tuple.ipv6.saddr));
		__builtin_memcpy(tuple.ipv6.daddr, m->key.daddr.addr, sizeof(tuple.ipv6.daddr));
		tuple.ipv6.sport = m->key.sport;
		tuple.ipv6.dport = m->key.dport;
		size = sizeof(tuple.ipv6);
	} else {
		tuple.ipv4.saddr = m->key.saddr.addr[3];
		tuple.ipv4.daddr = m->key.daddr.addr[3];
		tuple.ipv4.sport = m->key.sport;
		tuple.ipv4.dport = m->key.dport;
	}
	if (m->key.protocol == IPPROTO_TCP)
		sk = bpf_sk_lookup_tcp(ctx, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	else
		sk = bpf_sk_lookup_udp(ctx, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return false;
	found = m->key.protocol == IPPROTO_TCP ? sk->state != BPF_TCP_LISTEN : !!sk->dst_port;
	bpf_sk_release(sk);
	return found;
}

/* The answer to something that this machine sent into a tunnel. */
static __always_inline bool is_own_answer(struct xdp_md *ctx, struct meta *m)
{
	if (!(m->in_flags & PORT_TUNNEL) || !local_addresses.lookup(&m->key.daddr))
		return false;
	if (is_icmp(m))
		return is_icmp_query(m->v6, m->code >> 8) && !is_icmp_request(m->v6, m->code >> 8);
	return has_ports(m->key.protocol) && has_socket(ctx, m);
}
