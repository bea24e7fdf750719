/* SPDX-License-Identifier: GPL-2.0
 *
 * Policers: token buckets that all CPUs share. A bucket is one word, the time at which it would be full again, so that
 * time alone fills it and one compare-and-swap takes out of it. A packet of n bytes moves that time on by what n bytes
 * take at the rate, and conforms if it is then no further ahead than the burst takes.
 */
#define POLICER_TRIES	16	/* of a compare-and-swap: as many times others were faster */
#define POLICER_SLACK	((u64)POLICER_TICKS << 20)	/* about a millisecond, more than the clocks of CPUs differ */
#define POLICER_MOST	(1 << 19)	/* bytes of one packet, GSO packets included: no product overflows */
#define GREEN	0
#define YELLOW	1
#define RED	2

/* How far ahead of now a bucket is: 0, full, also for what no packet can have left behind: a word of another rate, or of
 * so long ago that it looks like the future. */
static __always_inline u64 debt_of(u64 full, u64 now, u64 burst)
{
	u64 ahead = full - now;

	return (s64)ahead < 0 || ahead > burst + POLICER_SLACK ? 0 : ahead;
}

static __always_inline u64 ticks_of(u32 octets, u64 cost)
{
	return octets * cost >> POLICER_SHIFT;
}

/* Take a packet out of a bucket, if there is enough in it. */
static __always_inline bool take_tokens(u64 *full, u64 now, u64 ticks, u64 burst)
{
	u64 seen, debt;
	u32 i;

	for (i = 0; i < POLICER_TRIES; i++) {
		seen = *(volatile u64 *)full;
		debt = debt_of(seen, now, burst) + ticks;
		if (debt > burst)
			return false;
		if (__sync_val_compare_and_swap(full, seen, now + debt) == seen)
			return true;
	}
	return false;
}

/* What the committed bucket has no room for goes into the excess bucket. */
static __always_inline void fill_excess(u64 *lacks, u64 ticks)
{
	u64 seen;
	u32 i;

	for (i = 0; i < POLICER_TRIES; i++) {
		seen = *(volatile u64 *)lacks;
		if (!seen || __sync_val_compare_and_swap(lacks, seen, seen > ticks ? seen - ticks : 0) == seen)
			return;
	}
}

/* The committed bucket of one with an excess bucket: it is brought up to the present also if the packet does not fit, for
 * the excess bucket's sake. */
static __always_inline bool take_committed(struct policer_state *state, u64 now, u64 ticks, u64 burst, bool wanted)
{
	u64 seen, debt, spare = 0, next;
	bool fits = false;
	u32 i;

	for (i = 0; i < POLICER_TRIES; i++) {
		seen = *(volatile u64 *)&state->full;
		debt = debt_of(seen, now, burst);
		fits = wanted && debt + ticks <= burst;
		if (debt && !fits)
			return false;
		next = now + debt + (fits ? ticks : 0);
		spare = debt ? 0 : now - seen;
		if (__sync_val_compare_and_swap(&state->full, seen, next) == seen)
			break;
		fits = false;
		spare = 0;
	}
	if (spare)
		fill_excess(&state->peak, (s64)spare < 0 ? ~0ULL : spare);
	return fits;
}

static __always_inline bool take_excess(u64 *lacks, u64 ticks, u64 burst)
{
	u64 seen;
	u32 i;

	for (i = 0; i < POLICER_TRIES; i++) {
		seen = *(volatile u64 *)lacks;
		if (seen + ticks > burst)
			return false;
		if (__sync_val_compare_and_swap(lacks, seen, seen + ticks) == seen)
			return true;
	}
	return false;
}

/* Drop precedence of assured forwarding (RFC 2597): 8 * class + 2 * precedence, classes 1 to 4. All else is green. */
static __always_inline u32 colour_of(u8 dscp)
{
	u32 precedence = dscp >> 1 & 3;

	if (dscp & 1 || dscp >> 3 < 1 || dscp >> 3 > 4 || !precedence)
		return GREEN;
	return precedence - 1;
}

/* RFC 2697 section 3, RFC 2698 section 3, colour-blind and colour-aware. */
static __always_inline u32 meter(struct policer *p, struct policer_state *state, u32 octets, u32 colour)
{
	u64 now = bpf_ktime_get_ns() * POLICER_TICKS, ticks = ticks_of(octets, p->cost);

	if (p->kind == POLICER_ONE_RATE) {
		if (take_committed(state, now, ticks, p->burst, colour == GREEN))
			return GREEN;
		return colour != RED && take_excess(&state->peak, ticks, p->peak_burst) ? YELLOW : RED;
	}
	if (p->kind == POLICER_TWO_RATES) {
		if (colour == RED || !take_tokens(&state->peak, now, ticks_of(octets, p->peak_cost), p->peak_burst))
			return RED;
		return colour == GREEN && take_tokens(&state->full, now, ticks, p->burst) ? GREEN : YELLOW;
	}
	return colour == GREEN && take_tokens(&state->full, now, ticks, p->burst) ? GREEN : RED;
}

/* What becomes of a packet by a policer: its DSCP, KEEP_DSCP, or DISCARD_COLOUR. */
static __always_inline u8 apply_policer(u32 bank, u32 index, u32 octets, u8 dscp)
{
	u32 place = bank * MAX_POLICERS + (index & (MAX_POLICERS - 1)), number, colour;
	struct policer *p = policers.lookup(&place);
	struct policer_state *state;

	if (!p)
		return KEEP_DSCP;
	number = p->number;
	state = policer_states.lookup(&number);
	if (!state)
		return KEEP_DSCP;
	colour = meter(p, state, octets < POLICER_MOST ? octets : POLICER_MOST, p->aware ? colour_of(dscp) : GREEN);
	if (colour == GREEN)
		return KEEP_DSCP;
	count_rule(colour == RED ? number : p->yellow_rule, octets);
	return colour == RED ? p->red : p->yellow;
}
