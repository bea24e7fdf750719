/* SPDX-License-Identifier: GPL-2.0
 *
 * TC ingress of a WAN: what the kernel has decrypted comes in once more, in clear, above XDP. It is led into the veth
 * pair of the tunnels, and so through the same pipeline as what an engine decrypts. The state (SA) that decrypted a
 * packet is known here only, so here it is held against the policy that the packet matches (RFC 4301 5.2).
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

static __always_inline int into_pipeline(struct __sk_buff *skb, u16 zone)
{
	u8 addresses[2 * ETH_ALEN] = TUNNEL_PORT_MAC;
	__be16 coded = htons(zone);

	__builtin_memcpy(addresses + TUNNEL_PORT_ZONE_AT, &coded, sizeof(coded));
	if (bpf_skb_store_bytes(skb, 0, addresses, sizeof(addresses), 0))
		return tc_drop(skb, REASON_NO_STAGE);
	count_verdict(REASON_DECRYPTED, skb->len, 1);
	return bpf_redirect(control_value(CONTROL_TUNNEL_ENTRY), 0);
}

int tc_decrypted(struct __sk_buff *skb)
{
	struct bpf_xfrm_state state = {};
	struct packet pkt = {};
	struct tunnel *t;
	struct meta *m;
	u32 parsed, wanted;

	if (!control_value(CONTROL_FIREWALL) || bpf_skb_get_xfrm_state(skb, 0, &state, sizeof(state), 0))
		return TC_ACT_UNSPEC;
	wanted = skb->len < HEADERS_PULLED ? skb->len : HEADERS_PULLED;
	if ((void *)(long)skb->data + wanted > (void *)(long)skb->data_end)
		bpf_skb_pull_data(skb, wanted);
	pkt.cursor = (void *)(long)skb->data;
	pkt.end = (void *)(long)skb->data_end;
	parsed = parse_ip(&pkt);
	m = meta_of(META_TC);
	if (!m)
		return tc_drop(skb, REASON_NO_STAGE);
	describe(m, &pkt);
	if ((parsed != NEXT && parsed != REASON_FRAGMENT) ||
	    (parsed == NEXT && !parse_l4(&pkt, m, WHOLE_L4)))
		return tc_drop(skb, REASON_MALFORMED);
	t = tunnel_in(m);
	if (!t || t->action != TUNNEL_PROTECT || t->reqid != state.reqid)
		return tc_drop(skb, REASON_TUNNEL_SELECTOR);
	if (!port_of(control_value(CONTROL_TUNNEL_PORT), t->zone, control_value(CONTROL_BANK) & 1))
		return tc_drop(skb, REASON_NO_ZONE);
	return into_pipeline(skb, t->zone);
}
