/* SPDX-License-Identifier: GPL-2.0
 *
 * XFRM interfaces (route-based IPsec): what routing sends out by one goes to the engine before XFRM sees it, and what
 * the engine has decrypted comes in by it, so that routes, routing protocols, netfilter and sockets mean what they mean
 * with the kernel alone. On the veth pair between kernel and engine a VLAN ID stands for the interface, both ways.
 *
 * So with VXLAN devices (XFRMI_FRAMES), by which whole Ethernet frames go and come, whether routing or a bridge has sent
 * them.
 */
#define VLAN_ID_MASK	0x0fff
#define XFRMI_BACK	0x6977	/* in tc_index, which nobody else looks at on these interfaces: it is not led again */

#define MAX_PACKET_BYTES	0xffff
#define TCP_LENGTH_AT	12	/* in the TCP header: its length in words, shifted left by 4 */

struct tagged_header {
	u8 destination[ETH_ALEN];
	u8 source[ETH_ALEN];
	__be16 tag_protocol;
	__be16 tag;
	__be16 protocol;
} __attribute__((packed));

struct tagged_addresses {
	u8 addresses[2 * ETH_ALEN];
	__be16 tag_protocol;
	__be16 tag;
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

	return !(versions & (version | XFRMI_FRAMES));
}

/* Of a frame that the kernel is going to cut into segments: how long the IP packets become, the longest there could be
 * for what is not TCP or UDP on top of IP. */
static __always_inline u32 segment_bytes(struct __sk_buff *skb)
{
	bool v4 = skb->protocol == htons(ETH_P_IP);
	u32 l3 = sizeof(struct ipv6hdr), at = v4 ? offsetof(struct iphdr, protocol) : offsetof(struct ipv6hdr, nexthdr);
	u8 first = 0, protocol = 0, length = 0;

	if ((!v4 && skb->protocol != htons(ETH_P_IPV6)) || bpf_skb_load_bytes(skb, ETH_HLEN, &first, sizeof(first)) ||
	    bpf_skb_load_bytes(skb, ETH_HLEN + at, &protocol, sizeof(protocol)))
		return MAX_PACKET_BYTES;
	if (v4)
		l3 = (first & 0x0f) * 4;
	if (protocol == IPPROTO_UDP)
		return l3 + sizeof(struct udphdr) + skb->gso_size;
	if (protocol != IPPROTO_TCP || bpf_skb_load_bytes(skb, ETH_HLEN + l3 + TCP_LENGTH_AT, &length, sizeof(length)))
		return MAX_PACKET_BYTES;
	return l3 + (length >> 4) * 4 + skb->gso_size;
}

/* What the kernel has to do itself: it tells senders, bridged ones too, what fits into the tunnel, and a second tag is
 * none that an engine takes. */
static __always_inline bool is_left(struct __sk_buff *skb, u32 mtu)
{
	if (skb->vlan_present || skb->protocol == htons(ETH_P_8021Q) || skb->protocol == htons(ETH_P_8021AD))
		return true;
	return (skb->gso_size ? segment_bytes(skb) : skb->len - ETH_HLEN) > mtu;
}

/* TC egress of a VXLAN device: the frame as it is, with a tag behind its addresses. */
static __always_inline int lead_frame(struct __sk_buff *skb, struct interface_lead *lead)
{
	struct tagged_addresses head = { .tag_protocol = htons(ETH_P_8021Q) };

	if (is_left(skb, lead->mtu)) {
		count_verdict(REASON_XFRMI_LEFT, skb->len, 1);
		return TC_ACT_UNSPEC;
	}
	head.tag = htons(lead->vlan);
	if (bpf_skb_load_bytes(skb, 0, head.addresses, sizeof(head.addresses)) ||
	    bpf_skb_change_head(skb, sizeof(head) - sizeof(head.addresses), 0) ||
	    bpf_skb_store_bytes(skb, 0, &head, sizeof(head), 0))
		return TC_ACT_SHOT;
	count_verdict(REASON_XFRMI_OUT, skb->len - sizeof(head), 1);
	return bpf_redirect(lead->uplink, 0);
}

/* TC egress of an XFRM interface, whose packets begin with the IP header, or of a VXLAN device. The tag is written into the frame: as metadata
 * it would be lost where the veth pair makes an XDP frame of the packet. */
int tc_xfrmi_out(struct __sk_buff *skb)
{
	struct tagged_header header = { .tag_protocol = htons(ETH_P_8021Q) };
	u32 ifindex = skb->ifindex;
	struct interface_lead *lead = interface_leads.lookup(&ifindex);

	if (!lead || !has_engine() || skb->tc_index == XFRMI_BACK)
		return TC_ACT_UNSPEC;
	if (lead->versions & XFRMI_FRAMES)
		return lead_frame(skb, lead);
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
