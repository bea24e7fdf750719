/* SPDX-License-Identifier: GPL-2.0
 *
 * XFRM interfaces (route-based IPsec): what routing sends out by one goes to the engine before XFRM sees it, and what
 * the engine has decrypted comes in by it, so that routes, routing protocols, netfilter and sockets mean what they mean
 * with the kernel alone. On the veth pair between kernel and engine a VLAN ID stands for the interface, both ways.
 */
#define VLAN_ID_MASK	0x0fff

struct tagged_header {
	u8 destination[ETH_ALEN];
	u8 source[ETH_ALEN];
	__be16 tag_protocol;
	__be16 tag;
	__be16 protocol;
} __attribute__((packed));

/* With no engine the kernel encrypts. That one is gone is told by the dock of the engine's end of the pair. */
static __always_inline bool has_engine(void)
{
	return control_value(CONTROL_ENGINE) && !control_value(CONTROL_ENGINE_GONE);
}

/* TC egress of an XFRM interface, whose packets begin with the IP header. The tag is written into the frame: as metadata
 * it would be lost where the veth pair makes an XDP frame of the packet. */
int tc_xfrmi_out(struct __sk_buff *skb)
{
	struct tagged_header header = { .tag_protocol = htons(ETH_P_8021Q) };
	u32 ifindex = skb->ifindex;
	struct interface_lead *lead = interface_leads.lookup(&ifindex);

	if (!lead || !has_engine())
		return TC_ACT_UNSPEC;
	header.tag = htons(lead->vlan);
	header.protocol = (__be16)skb->protocol;
	__builtin_memcpy(header.destination, lead->engine_mac, ETH_ALEN);
	__builtin_memcpy(header.source, lead->kernel_mac, ETH_ALEN);
	if (bpf_skb_change_head(skb, sizeof(header), 0) || bpf_skb_store_bytes(skb, 0, &header, sizeof(header), 0))
		return TC_ACT_SHOT;
	count_verdict(REASON_XFRMI_OUT, skb->len - sizeof(header), 1);
	return bpf_redirect(lead->uplink, 0);
}

/* The XFRM interface that a frame's tag stands for, the tag taken off; 0 for none. */
static __always_inline u32 take_tag(struct __sk_buff *skb)
{
	u32 vlan = skb->vlan_tci & VLAN_ID_MASK, *ifindex = interface_tags.lookup(&vlan);

	if (!ifindex || bpf_skb_vlan_pop(skb)) {
		count_verdict(REASON_XFRMI_UNKNOWN, skb->len, 1);
		return 0;
	}
	return *ifindex;
}

/* TC ingress of the kernel's end of the pair: decrypted by the engine. */
int tc_xfrmi_in(struct __sk_buff *skb)
{
	u32 ifindex;

	if (!skb->vlan_present)
		return TC_ACT_UNSPEC;
	ifindex = take_tag(skb);
	if (!ifindex)
		return TC_ACT_SHOT;
	count_verdict(REASON_XFRMI_IN, skb->len, 1);
	return bpf_redirect(ifindex, BPF_F_INGRESS);
}

/* TC ingress of the engine's end of the pair: plaintext that found no socket. Once more out by its interface, where
 * nobody leads it any more; were an engine there, it would go round for ever. */
int tc_xfrmi_back(struct __sk_buff *skb)
{
	bool lost = has_engine();
	u32 ifindex;

	if (!skb->vlan_present)
		return TC_ACT_UNSPEC;
	ifindex = take_tag(skb);
	if (!ifindex)
		return TC_ACT_SHOT;
	count_verdict(lost ? REASON_XFRMI_LOST : REASON_XFRMI_BACK, skb->len, 1);
	return lost ? TC_ACT_SHOT : bpf_redirect(ifindex, 0);
}
