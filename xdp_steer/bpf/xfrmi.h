/* SPDX-License-Identifier: GPL-2.0
 *
 * XFRM interfaces (route-based IPsec): what routing sends out by one goes to the engine before XFRM sees it, and what
 * the engine has decrypted comes in by it, so that routes, routing protocols, netfilter and sockets mean what they mean
 * with the kernel alone. On the veth pair between kernel and engine a VLAN ID stands for the interface, both ways.
 */
#define VLAN_ID_MASK	0x0fff
#define XFRMI_BACK	0x6977	/* in tc_index, which nobody else looks at on these interfaces: it is not led again */

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

static __always_inline int refuse_xfrmi(struct __sk_buff *skb, u32 reason)
{
	count_verdict(reason, skb->len, 1);
	return TC_ACT_SHOT;
}

/* Its tunnel has no selectors of this IP version: the kernel would drop it too. Not all of it meets the engine's own
 * check (multicast). */
static __always_inline bool is_other_version(struct __sk_buff *skb, u32 versions)
{
	u32 version = skb->protocol == htons(ETH_P_IP) ? XFRMI_IPV4 : skb->protocol == htons(ETH_P_IPV6) ? XFRMI_IPV6 : 0;

	return !(versions & version);
}

/* TC egress of an XFRM interface, whose packets begin with the IP header. The tag is written into the frame: as metadata
 * it would be lost where the veth pair makes an XDP frame of the packet. */
int tc_xfrmi_out(struct __sk_buff *skb)
{
	struct tagged_header header = { .tag_protocol = htons(ETH_P_8021Q) };
	u32 ifindex = skb->ifindex;
	struct interface_lead *lead = interface_leads.lookup(&ifindex);

	if (!lead || !has_engine() || skb->tc_index == XFRMI_BACK)
		return TC_ACT_UNSPEC;
	if (is_other_version(skb, lead->versions))
		return refuse_xfrmi(skb, REASON_XFRMI_VERSION);
	header.tag = htons(lead->vlan);
	header.protocol = (__be16)skb->protocol;
	__builtin_memcpy(header.destination, lead->engine_mac, ETH_ALEN);
	__builtin_memcpy(header.source, lead->kernel_mac, ETH_ALEN);
	if (bpf_skb_change_head(skb, sizeof(header), 0) || bpf_skb_store_bytes(skb, 0, &header, sizeof(header), 0))
		return TC_ACT_SHOT;
	count_verdict(REASON_XFRMI_OUT, skb->len - sizeof(header), 1);
	return bpf_redirect(lead->uplink, 0);
}

/* The XFRM interface that a frame's tag stands for, the tag taken off; NULL for none, or if it may not bring that. */
static __always_inline struct interface_entry *take_xfrmi_tag(struct __sk_buff *skb, u32 *reason)
{
	u32 vlan = skb->vlan_tci & VLAN_ID_MASK;
	struct interface_entry *entry = interface_tags.lookup(&vlan);

	*reason = REASON_XFRMI_UNKNOWN;
	if (!entry || bpf_skb_vlan_pop(skb))
		return NULL;
	*reason = REASON_XFRMI_VERSION;
	return is_other_version(skb, entry->versions) ? NULL : entry;
}

/* TC ingress of the kernel's end of the pair: decrypted by the engine. */
int tc_xfrmi_in(struct __sk_buff *skb)
{
	struct interface_entry *entry;
	u32 reason;

	if (!skb->vlan_present)
		return TC_ACT_UNSPEC;
	entry = take_xfrmi_tag(skb, &reason);
	if (!entry)
		return refuse_xfrmi(skb, reason);
	count_verdict(REASON_XFRMI_IN, skb->len, 1);
	return bpf_redirect(entry->ifindex, BPF_F_INGRESS);
}

/* TC ingress of the engine's end of the pair: plaintext that found no socket goes once more out by its interface, and
 * this time the kernel encrypts it. If the engine is there after all, with a socket for another queue, the guard holds
 * back what the kernel made of it, and the daemon sends it again. */
int tc_xfrmi_back(struct __sk_buff *skb)
{
	struct interface_entry *entry;
	u32 reason;

	if (!skb->vlan_present)
		return TC_ACT_UNSPEC;
	entry = take_xfrmi_tag(skb, &reason);
	if (!entry)
		return refuse_xfrmi(skb, reason);
	skb->tc_index = XFRMI_BACK;
	count_verdict(REASON_XFRMI_BACK, skb->len, 1);
	return bpf_redirect(entry->ifindex, 0);
}
