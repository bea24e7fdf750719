/* SPDX-License-Identifier: GPL-2.0
 *
 * The maps of the screens; screen_layout.py mirrors them. A screen has a number, SCREEN_, in every zone.
 */

/* What a zone screens, in one bank. */
struct screen {
	u32 wanted;	/* a bit for each screen */
	u32 flags;	/* SCREEN_ALARM_ONLY */
};

BPF_TABLE_PINNED("array", u32, struct screen, screens, MAX_BANKS * MAX_ZONES, PIN_ROOT "/screens");

/* By zone * MAX_SCREENS + screen: hits, and events of the present second as in tally(). */
BPF_TABLE_PINNED("percpu_array", u32, struct verdict_count, screen_counts, MAX_ZONES * MAX_SCREENS, PIN_ROOT "/screen_counts");
BPF_TABLE_PINNED("array", u32, u64, screen_told, MAX_ZONES * MAX_SCREENS, PIN_ROOT "/screen_told");
