/* SPDX-License-Identifier: GPL-2.0
 *
 * The steering stage: whose is this ESP packet?
 *
 * Everything that is not ESP of a known (destination, SPI) is the kernel's: IKE, the non-ESP marker,
 * keepalives, unknown SPIs and all outer fragments, whatever the maps hold.
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

/* REASON_STEERED, or why not. *counters becomes the SA's counters as soon as the SA is known. */
static __always_inline u32 steer_esp(struct packet *pkt, struct steer_count **counters)
{
	u32 slot = CONTROL_ENGINE, unfit;
	struct steer_entry *entry;
	u64 *engine;

	if (pkt->shape & SHAPE_FRAGMENT)
		return REASON_FRAGMENT;
	entry = steer.lookup(&pkt->key);
	if (!entry)
		return REASON_UNKNOWN_SPI;
	*counters = steer_counts.lookup(&entry->counter);
	if (entry->owner != OWNER_ENGINE)
		return REASON_KERNEL_OWNED;
	engine = control.lookup(&slot);
	if (!engine || !*engine)
		return REASON_ENGINE_OFF;
	unfit = unfit_shape(pkt->shape);
	return unfit == NEXT ? REASON_STEERED : unfit;
}
