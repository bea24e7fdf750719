/* SPDX-License-Identifier: GPL-2.0
 *
 * ICMP errors, both ways: the packet that one is about belongs to a session, and the error goes to who sent it, with
 * the addresses that the sender knows inside (RFC 5508). The checksum of the embedded L4 header is left alone: most
 * errors do not even carry it.
 *
 * A quote may end anywhere behind the ports. One of a later fragment has none: its first fragment has told whose it is,
 * under the name that fragments have after translation.
 */
#define QUOTED_PORTS	4	/* bytes of the embedded L4 header that tell the flow */
#define SEGMENTS_LEFT_AT	3	/* in a routing header */
#define QUOTED_ID	6	/* of ICMP: type, code, checksum, identifier */

struct inner {
	struct address saddr;
	struct address daddr;
	__be32 fragment_id;
	__be16 sport;
	__be16 dport;
	u16 l3;		/* offsets into the frame */
	u16 l4;
	u16 fragment;	/* of a fragment header, 0: none */
	u16 segments_left;	/* of the field in a routing header that is not used up, 0: none */
	u8 protocol;
	bool later;	/* a fragment that is not the first */
	bool query;	/* ICMP with an identifier */
};

/* As parse_ipv6() does it. False if the chain is too long or cut short. */
static __always_inline bool skip_extensions(void *data, void *end, struct inner *inner)
{
	u32 i, l4 = inner->l4;
	struct ip6_fragment *header;

	for (i = 0; i < MAX_EXTENSIONS && !inner->later && is_extension(inner->protocol); i++) {
		if (l4 > OFFSET_MASK)
			return false;
		header = data + l4;
		if ((void *)(header + 1) > end)
			return false;
		if (inner->protocol == IPPROTO_FRAGMENT) {
			inner->fragment_id = header->id;
			inner->later = header->offset & htons(IP6_FRAGMENT_OFFSET);
			inner->fragment = l4;
			l4 += sizeof(*header);
		} else {
			if (inner->protocol == IPPROTO_ROUTING && ((struct extension *)header)->left)
				inner->segments_left = l4 + SEGMENTS_LEFT_AT;
			l4 += (((struct extension *)header)->units + 1) * EXTENSION_UNIT;
		}
		inner->protocol = header->next;
	}
	inner->l4 = l4;
	return l4 <= OFFSET_MASK && (inner->later || !is_extension(inner->protocol));
}

static __always_inline bool parse_inner_ip(void *data, void *end, struct meta *m, struct inner *inner)
{
	struct ipv6hdr *ip6 = data + inner->l3;
	struct iphdr *ip = data + inner->l3;

	if (!m->v6) {
		if ((void *)(ip + 1) > end || ip->version != 4 || ip->ihl < 5)
			return false;
		inner->saddr.addr[2] = htonl(V4_MAPPED);
		inner->daddr.addr[2] = htonl(V4_MAPPED);
		inner->saddr.addr[3] = ip->saddr;
		inner->daddr.addr[3] = ip->daddr;
		inner->protocol = ip->protocol;
		inner->fragment_id = ip->id;
		inner->later = ip->frag_off & htons(IP_FRAGMENT_OFFSET);
		inner->l4 = inner->l3 + ip->ihl * 4;
		return true;
	}
	if ((void *)(ip6 + 1) > end || ip6->version != 6)
		return false;
	__builtin_memcpy(inner->saddr.addr, &ip6->saddr, sizeof(inner->saddr.addr));
	__builtin_memcpy(inner->daddr.addr, &ip6->daddr, sizeof(inner->daddr.addr));
	if (is_v4_mapped(&inner->saddr) || is_v4_mapped(&inner->daddr))
		return false;
	inner->protocol = ip6->nexthdr;
	inner->l4 = inner->l3 + sizeof(*ip6);
	return skip_extensions(data, end, inner);
}

/* False if the embedded headers are not whole as far as they tell the flow. */
static __always_inline bool parse_inner(void *data, void *end, struct meta *m, struct inner *inner)
{
	u32 limit = m->l3 + m->length, l4;
	struct icmp_header *icmp;
	struct udphdr *ports;

	inner->l3 = (m->l4 & OFFSET_MASK) + sizeof(struct icmp_header);
	if (!parse_inner_ip(data, end, m, inner))
		return false;
	l4 = inner->l4 & OFFSET_MASK;
	ports = data + l4;
	icmp = data + l4;
	if (has_ports(inner->protocol) && !inner->later) {
		if ((void *)ports + QUOTED_PORTS > end || l4 + QUOTED_PORTS > limit)
			return false;
		inner->sport = ports->source;
		inner->dport = ports->dest;
	} else if (inner->protocol == (m->v6 ? ICMP6_PROTOCOL : IPPROTO_ICMP) && !inner->later) {
		if ((void *)icmp + QUOTED_ID > end || l4 + QUOTED_ID > limit)
			return false;
		inner->query = is_icmp_query(m->v6, icmp->type);
		if (inner->query) {
			inner->sport = icmp->id;
			inner->dport = icmp->id;
		}
	}
	return l4 <= limit;
}

/* The flow of a quoted later fragment, by a mark that its first one left under `zone`. */
static __always_inline bool flow_of_fragment(struct meta *m, const struct inner *inner, u16 zone, struct flow_key *key)
{
	struct fragment_key piece = {
		.saddr = inner->saddr, .daddr = inner->daddr, .id = inner->fragment_id, .zone = zone,
		.protocol = m->v6 ? 0 : inner->protocol,
	};
	struct fragment *first = fragments.lookup(&piece);

	if (!first || first->seen_ns + FRAGMENT_SECONDS * SECOND_NS < bpf_ktime_get_coarse_ns())
		return false;
	*key = first->key;
	return true;
}

/* What the sender of the embedded packet knows it by: the translation of the replies to it. */
static __always_inline bool restore_inner(struct xdp_md *ctx, struct meta *m, struct inner *inner, struct session *s)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct icmp_header *icmp = data + (m->l4 & OFFSET_MASK);
	struct icmp_header *query = data + (inner->l4 & OFFSET_MASK);
	struct udphdr *ports = data + (inner->l4 & OFFSET_MASK);
	struct ipv6hdr *ip6 = data + (inner->l3 & OFFSET_MASK);
	struct iphdr *ip = data + (inner->l3 & OFFSET_MASK);
	u64 addresses = address_difference(&inner->saddr, &s->daddr, m->v6) +
			address_difference(&inner->daddr, &s->saddr, m->v6);
	u64 changes = 0;

	if ((void *)(icmp + 1) > end)
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
	if (has_ports(inner->protocol) && !inner->later) {
		if ((void *)ports + QUOTED_PORTS > end)
			return false;
		changes += difference16(ports->source, s->dport) + difference16(ports->dest, s->sport);
		ports->source = s->dport;
		ports->dest = s->sport;
	} else if (inner->query) {
		if ((void *)query + QUOTED_ID > end)
			return false;
		changes += difference16(query->id, s->dport);
		query->id = s->dport;
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
	bool over = false;
	u32 reason;
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
	s = NULL;
	if (!inner.later || flow_of_fragment(m, &inner, m->key.zone | LEFT_ZONE, &key))
		s = sessions.lookup(&key);
	now = bpf_ktime_get_coarse_ns();
	if (s && !is_live(s, now)) {
		reply_key(&reply, s, key.protocol);
		peer = sessions.lookup(&reply);
		if (!peer || !is_live(peer, now))
			s = NULL;
	}
	m->flags = META_ERROR;
	remain(m);
	if (!s) {
		if (is_to_translate(m))
			return translate_in(ctx, m);
		if (is_about_ipsec(&inner) && route(ctx, m) == ROUTE_LOCAL)
			return pass(ctx, REASON_HOST_IKE);
		/* About what this machine sent into a tunnel: the kernel holds it against its sockets. */
		if (m->in_flags & PORT_TUNNEL && local_addresses.lookup(&inner.saddr) &&
		    same_address(&inner.saddr, &m->key.daddr))
			return deliver(ctx, m, REASON_HOST_SOCKET);
		return drop(ctx, REASON_ICMP_NO_SESSION);
	}
	if (s->flags & SESSION_TRANSLATOR) {
		reason = translator_step(m, s, &over);
		if (reason != NEXT || over)
			return drop(ctx, over ? REASON_ICMP_NO_SESSION : reason);
	}
	if (s->flags & SESSION_NAT64) {	/* both become what they are in the other family when the route is known */
		become(m, s);
		return go(ctx, STAGE_FORWARD);
	}
	if (s->flags & SESSION_NAT && !restore_inner(ctx, m, &inner, s))
		return drop(ctx, REASON_MALFORMED);
	m->saddr = same_address(&m->key.saddr, &inner.daddr) ? s->saddr : m->key.saddr;
	m->daddr = s->daddr;
	m->sport = m->key.sport;
	m->dport = m->key.dport;
	m->out_zone = s->out_zone;
	if (s->flags & SESSION_NAT) {
		m->flags |= META_NAT;
		sum_changes(m);
	}
	if (s->flags & SESSION_TO_SELF)
		m->flags |= META_TO_SELF;
	return go(ctx, STAGE_FORWARD);
}
