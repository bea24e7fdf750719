/* SPDX-License-Identifier: GPL-2.0
 *
 * TC ingress. What the kernel has decrypted comes in by the WAN once more, in clear, above XDP. It is led into the veth
 * pair of the tunnels, and so through the same pipeline as what an engine decrypts. The state (SA) that decrypted a
 * packet is known here only, so here it is held against the policy that the packet matches (RFC 4301 5.2). Packets of
 * interfaces without Ethernet take the same way, with a header that XDP can read.
 */
static __always_inline void describe(struct meta *m, struct packet *pkt)
{
	m->key.saddr = pkt->source;
	m->key.daddr.addr[0] = pkt->key.addr[0];
	m->key.daddr.addr[1] = pkt->key.addr[1];
	m->key.daddr.addr[2] = pkt->key.addr[2];
	m->key.daddr.addr[3] = pkt->key.addr[3];
	m->key.sport = 0;
	m->key.dport = 0;
	m->key.protocol = pkt->protocol;
	m->v6 = !!(pkt->shape & SHAPE_IPV6);
	m->code = 0;
	m->tcp_flags = 0;
}

static __always_inline int take_decrypted(struct __sk_buff *skb, struct packet *pkt, u32 parsed, u32 reqid, bool bare)
{
	struct meta *m = meta_of(META_TC);
	struct tunnel *t;

	if (!m)
		return tc_drop(skb, REASON_NO_STAGE);
	describe(m, pkt);
	if ((parsed != NEXT && parsed != REASON_FRAGMENT) || (parsed == NEXT && !parse_l4(pkt, m, WHOLE_L4)))
		return tc_drop(skb, REASON_MALFORMED);
	t = tunnel_in(m);
	if (!t || t->action != TUNNEL_PROTECT || t->reqid != reqid)
		return tc_drop(skb, REASON_TUNNEL_SELECTOR);
	if (!port_of(control_value(CONTROL_TUNNEL_PORT), t->zone, control_value(CONTROL_BANK) & 1))
		return tc_drop(skb, REASON_NO_ZONE);
	return into_pipeline(skb, t->zone, bare, REASON_DECRYPTED);
}

/* Neighbours on the link talk to this machine alone: routing protocols and the like need the interface itself. */
static __always_inline bool is_of_link(const struct address *a)
{
	return is_group(a) || (a->addr[0] & htonl(0xffc00000)) == htonl(0xfe800000);
}

/* Whether the IP header is not at the beginning: seen by its first bytes, which the kernel knows the place of. */
static __always_inline bool has_ethernet(struct __sk_buff *skb, struct packet *pkt)
{
	u32 *here = pkt->cursor, there[4] = {};

	if ((void *)(here + 4) > pkt->end || bpf_skb_load_bytes_relative(skb, 0, there, sizeof(there), BPF_HDR_START_NET))
		return false;
	return (here[0] ^ there[0]) | (here[1] ^ there[1]) | (here[2] ^ there[2]) | (here[3] ^ there[3]);
}

/* The kernel has held what comes out of an XFRM interface against its policies; by others its tunnels may run. `bare`:
 * it has no Ethernet header. */
static __always_inline int take_routed(struct __sk_buff *skb, struct packet *pkt, u32 parsed, bool bare)
{
	struct port *port = port_of(skb->ifindex, 0, control_value(CONTROL_BANK) & 1);
	struct address to = { .addr = { pkt->key.addr[0], pkt->key.addr[1], pkt->key.addr[2], pkt->key.addr[3] } };
	struct bpf_xfrm_state state = {};

	if (!port)
		return tc_drop(skb, REASON_NO_ZONE);
	if (parsed != NEXT && parsed != REASON_FRAGMENT)
		return tc_drop(skb, REASON_MALFORMED);
	if (is_of_link(&to))
		return tc_pass(skb, REASON_HOST);
	if (!(port->flags & PORT_XFRM) && !bpf_skb_get_xfrm_state(skb, 0, &state, sizeof(state), 0))
		return take_decrypted(skb, pkt, parsed, state.reqid, bare);
	return into_pipeline(skb, port->zone, bare, REASON_DECRYPTED);
}
