/* SPDX-License-Identifier: GPL-2.0
 *
 * Screens for what belongs to no session: what its source looks for, before it may begin one, and how many sessions its
 * source and destination have, when it is permitted.
 */
/* How many different ports or addresses a source has asked for in this window, this one included. */
static __always_inline u32 distinct(struct meta *m, u16 screen, const struct address *item, u32 window, u32 enough)
{
	struct screen_item key = { .source = m->key.saddr, .item = *item, .zone = m->key.zone, .screen = screen };
	u64 *word = screen_word(m, &m->key.saddr, screen), *seen, now = window;

	if (!word)
		return 0;
	if (!is_past(*word, window) && (u32)*word > enough)
		return *word;
	seen = screen_items.lookup(&key);
	if (!seen)
		return screen_items.insert(&key, &now) ? 0 : tally(word, window, enough);
	now = *(volatile u64 *)seen;
	if (now == window || __sync_val_compare_and_swap(seen, now, (u64)window) != now)
		return 0;	/* counted already, by another CPU at this moment perhaps */
	return tally(word, window, enough);
}

/* What a source looks for, told by the flows that it would begin. */
static __always_inline u32 screen_search(struct meta *m, struct screen *screen)
{
	u32 window = window_of(screen), limit;
	struct address port = {};

	if (screen->wanted & 1 << SCREEN_PORT_SCAN && is_syn(m)) {
		limit = screen->thresholds[SCREEN_PORT_SCAN];
		port.addr[0] = m->key.dport;
		if (distinct(m, SCREEN_PORT_SCAN, &port, window, limit) > limit)
			return REASON_SCREEN_PORT_SCAN;
	}
	if (screen->wanted & 1 << SCREEN_IP_SWEEP && !is_own_ipsec(m)) {
		limit = screen->thresholds[SCREEN_IP_SWEEP];
		if (distinct(m, SCREEN_IP_SWEEP, &m->key.daddr, window, limit) > limit)
			return REASON_SCREEN_IP_SWEEP;
	}
	return NEXT;
}

/* A packet of no session, before it may begin one. */
int stage_screen_new(struct xdp_md *ctx)
{
	struct meta *m = meta_of(META_XDP);
	struct screen *screen;
	u32 reason;

	if (!m)
		return drop(ctx, REASON_NO_STAGE);
	m->flags |= META_SCREENED;
	screen = screens_of(m->bank, m->key.zone);
	if (screen && screen->wanted & 1 << SCREEN_SYN_COOKIE && may_have_cookie(m) && has_cookie(m)) {
		believe(m);
		return answer_icmp(ctx, m, ANSWER_RESET, 0, 0, REASON_SCREEN_COOKIE_VALID);
	}
	reason = screen ? screen_search(m, screen) : NEXT;
	if (reason != NEXT) {
		describe_arrival(m);
		if (screen_hit(m, screen, reason) != NEXT)
			return drop(ctx, reason);
	}
	return go(ctx, STAGE_NEW);
}

/* NEXT, or the limit of sessions that this one would exceed. It is counted in, then. */
static __always_inline u32 limit_sessions(struct meta *m)
{
	struct screen *screen = screens_of(m->bank, m->key.zone);
	u32 reason = NEXT;

	if (!screen)
		return NEXT;
	if (screen->wanted & 1 << SCREEN_SESSIONS_SOURCE &&
	    count_in(&m->key.saddr, m->key.zone, SCREEN_SESSIONS_SOURCE, screen->thresholds[SCREEN_SESSIONS_SOURCE]))
		reason = screen_hit(m, screen, REASON_SCREEN_SESSIONS_SOURCE);
	if (screen->wanted & 1 << SCREEN_SESSIONS_DESTINATION &&
	    count_in(&m->key.daddr, m->key.zone, SCREEN_SESSIONS_DESTINATION,
		     screen->thresholds[SCREEN_SESSIONS_DESTINATION]) && reason == NEXT)
		reason = screen_hit(m, screen, REASON_SCREEN_SESSIONS_DESTINATION);
	if (reason != NEXT)
		release_session(m->bank, &m->key);
	return reason;
}

/* A permitted flow, before its session is made. */
int stage_session_limit(struct xdp_md *ctx)
{
	struct meta *m = meta_of(META_XDP);
	u32 reason;

	if (!m)
		return drop(ctx, REASON_NO_STAGE);
	reason = limit_sessions(m);
	return reason == NEXT ? go(ctx, STAGE_CREATE) : drop(ctx, reason);
}
