/* SPDX-License-Identifier: GPL-2.0
 *
 * The way into the firewall: which port, are the headers sound, and what kind of packet is it? Fills the record.
 */
#define L4_TCP		20	/* bytes that a header has at least */
#define L4_UDP		8
#define L4_ICMP		8
#define NDP_FIRST	133	/* router solicitation */
#define NDP_LAST	137	/* redirect */
#define NDP_HOP_LIMIT	255
#define VID_MASK	0x0fff
#define SHAPE_SUSPECT	(SHAPE_OPTIONS | SHAPE_FRAGMENT | SHAPE_LATER | SHAPE_SOURCE_ROUTE)	/* to screens */
#define TCP_URG		0x20

struct tcp_header {
	__be16 source;
	__be16 dest;
	__be32 seq;
	__be32 ack;
	u8 offset;	/* header length in words, shifted left by 4 */
	u8 flags;
	__be16 window;
	__be16 checksum;
	__be16 urgent;
};

struct icmp_header {
	u8 type;
	u8 code;
	__be16 checksum;
	__be16 id;
	__be16 sequence;
};

static __always_inline bool is_icmp_error(u8 v6, u8 type)
{
	if (v6)
		return type >= 1 && type <= 4;
	return type == 3 || type == 4 || type == 5 || type == 11 || type == 12;
}

/* ICMP that has an identifier: echo and timestamp, requests and replies. */
static __always_inline bool is_icmp_query(u8 v6, u8 type)
{
	if (v6)
		return type == 128 || type == 129;
	return type == 8 || type == 0 || type == 13 || type == 14;
}

static __always_inline bool is_extension(u8 protocol)
{
	return protocol == IPPROTO_HOPOPTS || protocol == IPPROTO_DSTOPTS || protocol == IPPROTO_ROUTING ||
	       protocol == IPPROTO_FRAGMENT;
}

/* L4 header: ports (or identifier), TCP fields. False if it is not whole. `room` is what the IP length leaves. */
static __always_inline bool parse_l4(struct packet *pkt, struct meta *m, u32 room)
{
	void *l4 = pkt->cursor;
	struct tcp_header *tcp = l4;
	struct udphdr *udp = l4;
	struct icmp_header *icmp = l4;

	if (pkt->protocol == IPPROTO_TCP) {
		if ((void *)(tcp + 1) > pkt->end || room < L4_TCP)
			return false;
		m->key.sport = tcp->source;
		m->key.dport = tcp->dest;
		m->code = ntohs(tcp->dest);
		m->tcp_flags = tcp->flags;
		m->seq = ntohl(tcp->seq);
		m->ack = ntohl(tcp->ack);
	} else if (pkt->protocol == IPPROTO_UDP) {
		if ((void *)(udp + 1) > pkt->end || room < L4_UDP)
			return false;
		m->key.sport = udp->source;
		m->key.dport = udp->dest;
		m->code = ntohs(udp->dest);
	} else if (pkt->protocol == (m->v6 ? ICMP6_PROTOCOL : IPPROTO_ICMP)) {
		if ((void *)(icmp + 1) > pkt->end || room < L4_ICMP)
			return false;
		m->code = icmp->type << 8 | icmp->code;
		if (is_icmp_query(m->v6, icmp->type)) {
			m->key.sport = icmp->id;
			m->key.dport = icmp->id;
		}
	}
	return true;
}

static __always_inline bool is_icmp(struct meta *m)
{
	return m->key.protocol == (m->v6 ? ICMP6_PROTOCOL : IPPROTO_ICMP);
}

/* Could a screen have anything against it? Few packets of a session could. */
static __always_inline bool is_suspect(struct meta *m)
{
	u8 flags = m->tcp_flags;

	if (m->shape & SHAPE_SUSPECT || m->key.saddr.addr[3] == m->key.daddr.addr[3])
		return true;
	if (m->key.protocol == IPPROTO_TCP)
		return flags & (TCP_SYN | TCP_URG) || (flags & (TCP_FIN | TCP_ACK)) == TCP_FIN || !flags;
	if (m->key.protocol == IPPROTO_UDP)
		return m->in_flags & PORT_SCREEN_UDP;
	return m->in_flags & PORT_SCREEN_ICMP && is_icmp(m);
}

/* A packet that is let in: to the stage of its kind. */
static __always_inline int admit(struct xdp_md *ctx, struct meta *m)
{
	if (m->flags & META_LATER)
		return go(ctx, STAGE_FRAGMENT);
	if (is_icmp(m) && is_icmp_error(m->v6, m->code >> 8))
		return go(ctx, STAGE_ICMP_ERROR);
	if (is_group(&m->key.daddr))
		return go(ctx, STAGE_POLICY);
	return go(ctx, STAGE_FLOW);
}

/* The port that a packet came in by. The tunnels' port has a row for every zone; without one for tunnels there is none
 * at 0. */
static __always_inline struct port *arrival_port(struct xdp_md *ctx, struct meta *m)
{
	struct port *port = port_of(ctx->ingress_ifindex, m->vid, m->bank);
	void *data = (void *)(long)ctx->data;

	if ((!port || port->flags & PORT_DECRYPTED) && ctx->ingress_ifindex == control_value(CONTROL_TUNNEL_PORT) &&
	    data + sizeof(struct ethhdr) <= (void *)(long)ctx->data_end)
		port = port_of(ctx->ingress_ifindex, ntohs(*(__be16 *)(data + TUNNEL_PORT_ZONE_AT)), m->bank);
	return port;
}

/* Decrypted by the engine, and behind the tag of an XFRM interface: it is policed where it comes in by that one. */
static __always_inline bool is_of_xfrmi(struct xdp_md *ctx, u32 vid)
{
	return ctx->ingress_ifindex == control_value(CONTROL_UPLINK) && interface_tags.lookup(&vid);
}

/* From addresses to the next stage. `sound` is false if parse_ip() found the headers cut short. */
static __always_inline int enter(struct xdp_md *ctx, struct packet *pkt, bool sound)
{
	void *data = (void *)(long)ctx->data;
	u32 l3 = pkt->l3 - data, l4 = pkt->cursor - data, frame = pkt->end - data;
	struct meta *m = meta_of(META_XDP);
	struct port *port;

	if (!m)
		return drop(ctx, REASON_NO_STAGE);
	m->bank = control_value(CONTROL_BANK) & 1;
	m->vid = ntohs(pkt->tci) & VID_MASK;
	port = arrival_port(ctx, m);
	if (!port)
		return is_of_xfrmi(ctx, m->vid) ? pass(ctx, REASON_XFRMI_PASSED) : drop(ctx, REASON_NO_ZONE);
	if (!sound || pkt->length < l4 - l3 || l3 + pkt->length > frame)
		return drop(ctx, REASON_MALFORMED);
	m->key.saddr = pkt->source;
	m->key.daddr.addr[0] = pkt->key.addr[0];
	m->key.daddr.addr[1] = pkt->key.addr[1];
	m->key.daddr.addr[2] = pkt->key.addr[2];
	m->key.daddr.addr[3] = pkt->key.addr[3];
	m->key.sport = 0;
	m->key.dport = 0;
	m->key.zone = port->zone;
	m->key.protocol = pkt->protocol;
	m->key.reserved = 0;
	m->v6 = !!(pkt->shape & SHAPE_IPV6);
	/* The maps could not tell them from IPv4, and no such packet belongs on a wire (RFC 4038 4.2). */
	if (m->v6 && (is_v4_mapped(&m->key.saddr) || is_v4_mapped(&m->key.daddr)))
		return drop(ctx, REASON_MALFORMED);
	m->code = 0;
	m->length = pkt->length;
	m->l3 = l3;
	m->l4 = l4;
	m->in_flags = port->flags;
	m->in_mss = port->mss;
	m->l3_ifindex = port->l3_ifindex;
	m->shape = pkt->shape;
	m->ttl = pkt->ttl;
	m->tcp_flags = 0;
	m->flags = META_SESSION;
	m->mss = 0;
	m->out_ifindex = 0;
	m->fragment_id = pkt->fragment_id;
	if (pkt->shape & SHAPE_LATER)
		m->flags |= META_LATER;
	else if ((m->v6 && is_extension(pkt->protocol)) || !parse_l4(pkt, m, pkt->length - (l4 - l3)))
		return drop(ctx, REASON_MALFORMED);
	if (m->v6 && is_icmp(m) && m->code >> 8 >= NDP_FIRST && m->code >> 8 <= NDP_LAST && m->ttl == NDP_HOP_LIMIT)
		return pass(ctx, REASON_NDP);
	if (m->in_flags & (PORT_SCREEN | PORT_FILTER | PORT_TRANSLATED)) {	/* one test for those that have none */
		if (m->in_flags & PORT_TRANSLATED)
			return go(ctx, STAGE_TRANSLATED);
		if (m->in_flags & PORT_FILTER)
			return go(ctx, STAGE_FILTER);
		if (is_suspect(m))
			return go(ctx, STAGE_SCREEN);
	}
	return admit(ctx, m);
}
