/* SPDX-License-Identifier: GPL-2.0
 *
 * Events for user space. A full ring loses the record, never the packet, and the loss is counted.
 */
static __always_inline void tell(struct event *event)
{
	u32 slot = 0;
	u64 *lost;

	if (!events.ringbuf_output(event, sizeof(*event), 0))
		return;
	lost = events_lost.lookup(&slot);
	if (lost)
		(*lost)++;
}
