/* SPDX-License-Identifier: GPL-2.0
 *
 * The maps of filters and policers; filter_layout.py mirrors them. The terms of all filters are rows of one more rule
 * table, TABLE_FILTER, with the number of the filter in place of a zone pair. What the classes of a rule table do not
 * tell apart has classes of its own here.
 */

/* What a term does beside what its row of the same place says. */
struct filter_row {
	u32 policer;	/* index into policers + 1, 0: none */
	u32 mirror;	/* interface that a copy is sent out by, 0: none */
	u8 mark;	/* DSCP that the packet gets, KEEP_DSCP: the one it has */
	u8 reserved[3];
};

/* A copy for user space to send. */
struct copy {
	u32 ifindex;
	u32 length;
	u8 frame[COPY_OCTETS];
};

/* Rates are ticks of time (POLICER_TICKS to a nanosecond) that a byte takes, shifted by POLICER_SHIFT; bursts are the
 * ticks that they take. */
struct policer {
	u32 number;	/* index into policer_states, and into rule_counts for what is red */
	u32 yellow_rule;	/* index into rule_counts for what is yellow, 0: there is no such colour */
	u8 kind;	/* POLICER_ */
	u8 aware;	/* 1: packets have a colour, by their DSCP (RFC 2597), and get no better one */
	u8 yellow;	/* what becomes of it: a DSCP, KEEP_DSCP, or DISCARD_COLOUR */
	u8 red;
	u32 reserved;
	u64 cost;	/* of the (committed) rate */
	u64 burst;
	u64 peak_cost;	/* POLICER_TWO_RATES: of the peak rate */
	u64 peak_burst;	/* and its burst; POLICER_ONE_RATE: the excess burst */
};

/* Shared by all CPUs, in ticks since boot, modulo 2^64. */
struct policer_state {
	u64 full;	/* when the committed bucket is full again */
	u64 peak;	/* POLICER_TWO_RATES: when the peak bucket is; POLICER_ONE_RATE: what the excess bucket lacks */
};

/* A class for each DSCP of whole packets and of fragments, then for each set of TCP flags, then for what has none. */
BPF_TABLE_PINNED("array", u32, struct bit_row, filter_bits, MAX_BANKS * MAX_FILTER_CLASSES, PIN_ROOT "/filter_bits");
BPF_TABLE_PINNED("array", u32, struct filter_row, filter_rows, MAX_BANKS * MAX_ROWS, PIN_ROOT "/filter_rows");
BPF_TABLE_PINNED("array", u32, struct policer, policers, MAX_BANKS * MAX_POLICERS, PIN_ROOT "/policers");
BPF_TABLE_PINNED("array", u32, struct policer_state, policer_states, MAX_RULES, PIN_ROOT "/policer_states");
/* By rule: events of the present second, as tally() counts them. */
BPF_TABLE_PINNED("array", u32, u64, filter_told, MAX_RULES, PIN_ROOT "/filter_told");

PINNED_RING(copies, COPY_RING_BYTES);

/* Copies that the full ring had no room for. */
BPF_TABLE_PINNED("percpu_array", u32, u64, copies_lost, 1, PIN_ROOT "/copies_lost");
