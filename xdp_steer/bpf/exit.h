/* SPDX-License-Identifier: GPL-2.0
 *
 * The one exit of the XDP pipeline: counts per reason and per SA, then hands over or passes.
 *
 * It never drops. Steering decides between two takers of the same packet, engine and kernel, who both hold
 * the SA; where the way to the engine is missing (no dock, no slot) the kernel is the right one. The rule
 * that a missing tail call drops is for stages that police packets, and none is behind this exit.
 */

/* Per-CPU values: nobody else writes them between two lines here. `n` is 1, or -1 to take a count back. */
static __always_inline void count_verdict(u32 reason, u64 octets, int n)
{
	struct verdict_count *count = verdicts.lookup(&reason);

	if (!count)
		return;
	count->packets += n;
	count->octets += n * octets;
}

static __always_inline void count_engine(struct steer_count *counters, u64 octets, int n)
{
	if (!counters)
		return;
	counters->engine_packets += n;
	counters->engine_octets += n * octets;
}

static __always_inline void count_kernel(struct steer_count *counters, u64 octets)
{
	if (!counters)
		return;
	counters->kernel_packets++;
	counters->kernel_octets += octets;
}

static __always_inline int leave(struct xdp_md *ctx, u32 reason, struct steer_count *counters)
{
	u64 octets = (void *)(long)ctx->data_end - (void *)(long)ctx->data;
	u32 ifindex = ctx->ingress_ifindex, place = ifindex & (MAX_EXIT_SLOTS - 1);
	struct exit_slot *exit;

	if (reason == REASON_STEERED) {
		exit = exit_slots.lookup(&place);	/* an array: a hash costs half as much as all the rest */
		if (exit && exit->ifindex == ifindex) {
			/* A tail call does not come back: count first, and take it back if it did. */
			count_verdict(REASON_STEERED, octets, 1);
			count_engine(counters, octets, 1);
			exits.call(ctx, exit->slot);
			count_verdict(REASON_STEERED, octets, -1);
			count_engine(counters, octets, -1);
		}
		reason = REASON_NO_DOCK;
	}
	count_verdict(reason, octets, 1);
	count_kernel(counters, octets);
	return XDP_PASS;
}
