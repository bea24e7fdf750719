/* SPDX-License-Identifier: GPL-2.0
 *
 * The maps of the screens; screen_layout.py mirrors them. A screen has a number, SCREEN_, in every zone.
 */

/* What a zone screens, in one bank. */
struct screen {
	u32 wanted;	/* a bit for each screen */
	u32 flags;	/* SCREEN_ALARM_ONLY */
	u32 window;	/* seconds that thresholds are about */
	u32 reserved;
	u32 thresholds[MAX_SCREENS];
};

/* An address that packets come from or go to, and what of it is counted. Zero-padded, like the next one. */
struct screen_key {
	struct address addr;
	u16 zone;
	u16 screen;
};

/* A port (in its first word) or destination that a source has asked for. */
struct screen_item {
	struct address source;
	struct address item;
	u16 zone;
	u16 screen;
};

BPF_TABLE_PINNED("array", u32, struct screen, screens, MAX_BANKS * MAX_ZONES, PIN_ROOT "/screens");

/* By zone * MAX_SCREENS + screen: hits, and in words as tally() has them: events of the present second, and packets of a
 * window. */
BPF_TABLE_PINNED("percpu_array", u32, struct verdict_count, screen_counts, MAX_ZONES * MAX_SCREENS, PIN_ROOT "/screen_counts");
BPF_TABLE_PINNED("array", u32, u64, screen_told, MAX_ZONES * MAX_SCREENS, PIN_ROOT "/screen_told");
BPF_TABLE_PINNED("array", u32, u64, screen_floods, MAX_ZONES * MAX_SCREENS, PIN_ROOT "/screen_floods");

/* By address: words of tally(), the windows in which an item was asked for, and sessions (2's complement: those from
 * before there was a limit are counted out only). Where there are more addresses than room, those not seen for longest
 * begin anew. */
BPF_TABLE_PINNED("lru_hash", struct screen_key, u64, screen_words, MAX_SCREEN_WORDS, PIN_ROOT "/screen_words");
BPF_TABLE_PINNED("lru_hash", struct screen_item, u64, screen_items, MAX_SCREEN_ITEMS, PIN_ROOT "/screen_items");
BPF_TABLE_PINNED("lru_hash", struct screen_key, u64, session_counts, MAX_SESSION_COUNTS, PIN_ROOT "/session_counts");
