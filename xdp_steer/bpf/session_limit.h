/* SPDX-License-Identifier: GPL-2.0
 *
 * How many sessions an address has, as source or as destination of what comes in from a zone that limits them. Every
 * session is counted in before it is made and counted out by whoever in the datapath ends it; the collector, which ends
 * most of them, writes what it has counted over the whole table at every sweep.
 */
static __always_inline struct screen *screens_of(u32 bank, u16 zone)
{
	u32 index = bank * MAX_ZONES + zone;

	return screens.lookup(&index);
}

/* Count a session in. True if the address has too many then. */
static __always_inline bool count_in(const struct address *a, u16 zone, u16 screen, u32 limit)
{
	struct screen_key key = { .addr = *a, .zone = zone, .screen = screen };
	u64 *count = session_counts.lookup(&key), none = 0;

	if (!count) {
		session_counts.insert(&key, &none);	/* another CPU may win */
		count = session_counts.lookup(&key);
	}
	return count && (s64)__sync_fetch_and_add(count, 1) >= (s64)limit;
}

static __always_inline void count_out(const struct address *a, u16 zone, u16 screen)
{
	struct screen_key key = { .addr = *a, .zone = zone, .screen = screen };
	u64 *count = session_counts.lookup(&key);

	if (count)
		__sync_fetch_and_add(count, -1);
}

/* A session with that forward entry is gone, or was never made. */
static __always_inline void release_session(u32 bank, const struct flow_key *forward)
{
	struct screen *screen = screens_of(bank, forward->zone);

	if (!screen)
		return;
	if (screen->wanted & 1 << SCREEN_SESSIONS_SOURCE)
		count_out(&forward->saddr, forward->zone, SCREEN_SESSIONS_SOURCE);
	if (screen->wanted & 1 << SCREEN_SESSIONS_DESTINATION)
		count_out(&forward->daddr, forward->zone, SCREEN_SESSIONS_DESTINATION);
}
