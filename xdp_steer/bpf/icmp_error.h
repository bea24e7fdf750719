/* SPDX-License-Identifier: GPL-2.0
 *
 * ICMP errors, both ways: the packet that one is about belongs to a session, and the error goes to who sent it, with
 * the addresses that the sender knows inside (RFC 5508). The checksum of the embedded L4 header is left alone: most
 * errors do not even carry it.
 */
#define INNER_PORTS	8	/* bytes of the embedded packet behind its IP header */

struct inner_ports {
	__be16 first;	/* ports; of ICMP: type and code, checksum, identifier */
	__be16 second;
	__be16 third;
	__be16 fourth;
};

struct inner {
	struct address saddr;
	struct address daddr;
	__be16 sport;
	__be16 dport;
	u8 protocol;
	u16 l3;		/* offsets into the frame */
	u16 l4;
};

/* False if the embedded headers are not whole. */
static __always_inline bool parse_inner(void *data, void *end, struct meta *m, struct inner *inner)
{
	void *l3;
	struct inner_ports *ports;
	struct ipv6hdr *ip6;
	struct iphdr *ip;
	u8 type;

	inner->l3 = (m->l4 & OFFSET_MASK) + sizeof(struct icmp_header);
	l3 = data + inner->l3;
	ip = l3;
	ip6 = l3;
	if (m->v6) {
		if ((void *)(ip6 + 1) > end || ip6->version != 6 || is_extension(ip6->nexthdr))
			return false;
		__builtin_memcpy(inner->saddr.addr, &ip6->saddr, sizeof(inner->saddr.addr));
		__builtin_memcpy(inner->daddr.addr, &ip6->daddr, sizeof(inner->daddr.addr));
		inner->protocol = ip6->nexthdr;
		inner->l4 = inner->l3 + sizeof(*ip6);
	} else {
		if ((void *)(ip + 1) > end || ip->version != 4 || ip->ihl < 5)
			return false;
		inner->saddr.addr[2] = htonl(V4_MAPPED);
		inner->daddr.addr[2] = htonl(V4_MAPPED);
		inner->saddr.addr[3] = ip->saddr;
		inner->daddr.addr[3] = ip->daddr;
		inner->protocol = ip->protocol;
		inner->l4 = inner->l3 + ip->ihl * 4;
	}
	ports = data + inner->l4;
	if ((void *)(ports + 1) > end || inner->l4 + INNER_PORTS > m->l3 + m->length)
		return false;
	if (has_ports(inner->protocol)) {
		inner->sport = ports->first;
		inner->dport = ports->second;
	} else if (inner->protocol == (m->v6 ? ICMP6_PROTOCOL : IPPROTO_ICMP)) {
		type = *(u8 *)ports;
		if (is_icmp_query(m->v6, type)) {
			inner->sport = ports->third;
			inner->dport = ports->third;
		}
	}
	return true;
}

/* What the sender of the embedded packet knows it by: the translation of the replies to it. */
static __always_inline bool restore_inner(struct xdp_md *ctx, struct meta *m, struct inner *inner, struct session *s)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct icmp_header *icmp = data + (m->l4 & OFFSET_MASK);
	struct inner_ports *ports = data + (inner->l4 & OFFSET_MASK);
	struct ipv6hdr *ip6 = data + (inner->l3 & OFFSET_MASK);
	struct iphdr *ip = data + (inner->l3 & OFFSET_MASK);
	u64 addresses = address_difference(&inner->saddr, &s->daddr) + address_difference(&inner->daddr, &s->saddr);
	u64 changes = 0;

	if ((void *)(icmp + 1) > end || (void *)(ports + 1) > end)
		return false;
	if (m->v6) {
		if ((void *)(ip6 + 1) > end)
			return false;
		__builtin_memcpy(&ip6->saddr, s->daddr.addr, sizeof(ip6->saddr));
		__builtin_memcpy(&ip6->daddr, s->saddr.addr, sizeof(ip6->daddr));
		changes = addresses;
	} else {
		if ((void *)(ip + 1) > end)
			return false;
		/* Its checksum keeps the sum of the header, so the outer one need not know. */
		ip->check = changed(ip->check, addresses);
		ip->saddr = s->daddr.addr[3];
		ip->daddr = s->saddr.addr[3];
	}
	if (has_ports(inner->protocol)) {
		changes += difference16(ports->first, s->dport) + difference16(ports->second, s->sport);
		ports->first = s->dport;
		ports->second = s->sport;
	} else if (inner->sport) {
		changes += difference16(ports->third, s->dport);
		ports->third = s->dport;
	}
	icmp->checksum = changed(icmp->checksum, changes);
	return true;
}

/* Path MTU and the like about our own tunnels: charon and the kernel want to know. */
static __always_inline bool is_about_ipsec(struct inner *inner)
{
	return is_ipsec(inner->protocol, inner->sport);
}

int stage_icmp_error(struct xdp_md *ctx)
{
	struct meta *m = meta_of(META_XDP);
	struct flow_key key = {}, reply;
	struct session *s, *peer;
	struct inner inner = {};
	u64 now;

	if (!m)
		return drop(ctx, REASON_NO_STAGE);
	if (!parse_inner((void *)(long)ctx->data, (void *)(long)ctx->data_end, m, &inner))
		return drop(ctx, REASON_MALFORMED);
	key.saddr = inner.daddr;
	key.daddr = inner.saddr;
	key.sport = inner.dport;
	key.dport = inner.sport;
	key.zone = m->key.zone;
	key.protocol = inner.protocol;
	s = sessions.lookup(&key);
	now = bpf_ktime_get_coarse_ns();
	if (s && !is_live(s, now)) {
		reply_key(&reply, s, inner.protocol);
		peer = sessions.lookup(&reply);
		if (!peer || !is_live(peer, now))
			s = NULL;
	}
	m->flags = META_ERROR;
	m->daddr = m->key.daddr;
	if (!s) {
		if (is_about_ipsec(&inner) && route(ctx, m) == ROUTE_LOCAL)
			return pass(ctx, REASON_HOST_IKE);
		/* About what this machine sent into a tunnel: the kernel holds it against its sockets. */
		if (m->in_flags & PORT_TUNNEL && local_addresses.lookup(&inner.saddr) &&
		    same_address(&inner.saddr, &m->key.daddr))
			return pass(ctx, REASON_HOST_SOCKET);
		return drop(ctx, REASON_ICMP_NO_SESSION);
	}
	if (s->flags & SESSION_NAT && !restore_inner(ctx, m, &inner, s))
		return drop(ctx, REASON_MALFORMED);
	m->saddr = same_address(&m->key.saddr, &inner.daddr) ? s->saddr : m->key.saddr;
	m->daddr = s->daddr;
	m->sport = m->key.sport;
	m->dport = m->key.dport;
	m->out_zone = s->out_zone;
	if (s->flags & SESSION_NAT)
		m->flags |= META_NAT;
	if (s->flags & SESSION_TO_SELF)
		m->flags |= META_TO_SELF;
	return go(ctx, STAGE_FORWARD);
}
