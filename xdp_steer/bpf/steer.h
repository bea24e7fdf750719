/* SPDX-License-Identifier: GPL-2.0
 *
 * The steering stage: whose is this ESP packet?
 *
 * Everything that is not ESP of a known (destination, SPI) is the kernel's: IKE, the non-ESP marker,
 * keepalives, unknown SPIs and all outer fragments, whatever the maps hold.
 *
 * The source of ESP in UDP may change: a NAT maps its peer anew. Only the kernel tells charon, when it has
 * authenticated a packet from there. So the packet is noted, and as soon as user space has moved the kernel's replay
 * window to where the engine's is, which it does for a moment only (trial_ns), the next ones go to the kernel.
 */

/* Why an engine cannot take a packet of this shape, or NEXT. A tag belongs to another (VLAN) interface than
 * the one that the engine works on; VPP punts IPv4 options (ip4-options node) and reads no IPv6 extension
 * header before ESP. The kernel holds the same inbound SA and takes them all. */
static __always_inline u32 unfit_shape(u32 shape)
{
	if (shape & SHAPE_TAGGED)
		return REASON_TAGGED;
	if (shape & SHAPE_OPTIONS)
		return REASON_IP_OPTIONS;
	if (shape & SHAPE_EXTENSIONS)
		return REASON_IP6_EXTENSIONS;
	return NEXT;
}

static __always_inline void note_moved(struct packet *pkt)
{
	struct sa_key key = pkt->key;	/* a copy, as in guard_esp() */
	u32 one = 1;

	if (!moved.lookup(&key))
		moved.insert(&key, &one);	/* full: user space empties it several times a second */
}

/* ESP in UDP, or bare, as the SA has it (the kernel drops the other), and from where it is expected? */
static __always_inline u32 check_source(struct packet *pkt, struct steer_entry *entry)
{
	u64 trial_ns = entry->trial_ns;
	u32 differing;

	if (!pkt->udp_source != !entry->port)
		return REASON_ENCAPSULATION;
	if (!entry->port)
		return REASON_STEERED;
	differing = (entry->port ^ (__be16)pkt->udp_source) | (entry->peer.addr[0] ^ pkt->source.addr[0]) |
		    (entry->peer.addr[1] ^ pkt->source.addr[1]) | (entry->peer.addr[2] ^ pkt->source.addr[2]) |
		    (entry->peer.addr[3] ^ pkt->source.addr[3]);
	if (!differing)
		return REASON_STEERED;
	note_moved(pkt);
	return trial_ns && bpf_ktime_get_ns() < trial_ns ? REASON_MOVED : REASON_STEERED;
}

/* REASON_STEERED, or why not. *counters becomes the SA's counters as soon as the SA is known. */
static __always_inline u32 steer_esp(struct packet *pkt, struct steer_count **counters)
{
	struct steer_entry *entry;
	u32 unfit;

	if (pkt->shape & SHAPE_FRAGMENT)
		return REASON_FRAGMENT;
	entry = steer.lookup(&pkt->key);
	if (!entry)
		return REASON_UNKNOWN_SPI;
	*counters = steer_counts.lookup(&entry->counter);
	if (entry->owner != OWNER_ENGINE)
		return REASON_KERNEL_OWNED;
	if (!control_value(CONTROL_ENGINE))
		return REASON_ENGINE_OFF;
	unfit = unfit_shape(pkt->shape);
	return unfit == NEXT ? check_source(pkt, entry) : unfit;
}

/* Bare ESP in IPv4 without tag, options or fragments, of an SA that the engine holds: nearly all that is steered, so it
 * is not parsed as a whole, which would cost a fifth more. NEXT for every other packet. */
static __always_inline int steer_plain(struct xdp_md *ctx)
{
	struct ethhdr *eth = (void *)(long)ctx->data;
	struct iphdr *ip = (void *)(eth + 1);
	__be32 *spi = (void *)(ip + 1);
	struct sa_key key = { .addr = { 0, 0, htonl(V4_MAPPED) } };
	struct steer_entry *entry;

	if ((void *)spi + ESP_MINIMUM > (void *)(long)ctx->data_end || eth->h_proto != htons(ETH_P_IP))
		return NEXT;
	if (ip->version != 4 || ip->ihl * 4 != sizeof(*ip) || ip->protocol != IPPROTO_ESP ||
	    ip->frag_off & htons(IP_MORE_FRAGMENTS | IP_FRAGMENT_OFFSET))
		return NEXT;
	key.addr[3] = ip->daddr;
	key.spi = *spi;
	entry = steer.lookup(&key);
	if (!entry || entry->owner != OWNER_ENGINE || entry->port || !control_value(CONTROL_ENGINE))
		return NEXT;
	return leave(ctx, REASON_STEERED, steer_counts.lookup(&entry->counter));
}
