/* SPDX-License-Identifier: GPL-2.0
 *
 * Windows that all CPUs count in, and what a hit of a screen leaves behind: a count, and an event unless there were many.
 *
 * A window is a whole number of seconds and has the name of its first one, so that windows of another length, after a
 * reload, follow those before.
 */
/* Is a word, window << 32 | count, of a window before this one? */
static __always_inline bool is_past(u64 word, u32 window)
{
	return (s32)(window - (u32)(word >> 32)) > 0;
}

/* Count one in a window; how many there are then. All CPUs share the word, and more than `enough` is not counted: it is
 * left alone where it would be fought over most. */
static __always_inline u32 tally(u64 *word, u32 window, u32 enough)
{
	u64 seen = *(volatile u64 *)word, found;

	if (is_past(seen, window)) {
		found = __sync_val_compare_and_swap(word, seen, (u64)window << 32 | 1);
		/* Begun, or kept from it by a late one of the window before, whose count does not concern this one. */
		if (found == seen || is_past(found, window))
			return 1;
	} else if ((u32)seen > enough) {
		return seen;
	}
	return __sync_fetch_and_add(word, 1) + 1;
}

static __always_inline u32 window_of(struct screen *screen)
{
	u32 now = bpf_ktime_get_coarse_ns() / SECOND_NS;

	return now - now % (screen->window ? screen->window : 1);
}

/* Count a hit, and tell of it unless the present second is full of them. */
static __always_inline void note(struct meta *m, u32 reason, u32 kind)
{
	u32 index = m->key.zone * MAX_SCREENS + reason - REASON_SCREEN_LAND;
	struct verdict_count *count = screen_counts.lookup(&index);
	u64 *told = screen_told.lookup(&index);

	if (!count || !told)
		return;
	count->packets++;
	count->octets += m->length;
	if (tally(told, bpf_ktime_get_coarse_ns() / SECOND_NS, SCREEN_EVENTS) <= SCREEN_EVENTS)
		report(m, kind, reason);
}

/* A packet that hits a screen: NEXT if it only gives alarm, or the reason. */
static __always_inline u32 screen_hit(struct meta *m, struct screen *screen, u32 reason)
{
	if (screen->flags & SCREEN_ALARM_ONLY) {
		note(m, reason, EVENT_ALARM);
		return NEXT;
	}
	note(m, reason, EVENT_SCREEN);
	return reason;
}

/* Before anything is known of where the packet goes. */
static __always_inline void describe_arrival(struct meta *m)
{
	remain(m);
	m->out_zone = m->key.zone;
	m->session_id = 0;
	m->rule = 0;
}
