/* SPDX-License-Identifier: GPL-2.0
 *
 * The policy stage: zone pair rules, global rules, the default (one ordered table), and what a denial looks like.
 */
static __always_inline void report(struct meta *m, u32 kind, u32 reason)
{
	struct event event = {
		.time_ns = bpf_ktime_get_ns(), .session = m->session_id, .key = m->key,
		.saddr = m->saddr, .daddr = m->daddr, .sport = m->sport, .dport = m->dport,
		.out_zone = m->out_zone, .kind = kind, .rule = m->rule, .reason = reason,
	};

	tell(&event);
}

/* Drop a packet and tell its sender, if it may be told. */
static __always_inline int reject(struct xdp_md *ctx, struct meta *m, u32 reason)
{
	if (m->key.protocol != IPPROTO_TCP)
		return answer_icmp(ctx, m, m->v6 ? ICMP6_UNREACHABLE : ICMP_UNREACHABLE,
				   m->v6 ? ICMP6_PROHIBITED : ICMP_PROHIBITED, 0, reason);
	if (m->tcp_flags & TCP_RST)
		return drop(ctx, reason);
	return answer_icmp(ctx, m, ANSWER_RESET, 0, 0, reason);
}

static __always_inline int refuse(struct xdp_md *ctx, struct meta *m, u32 action, u32 reason)
{
	count_rule(m->rule, m->length);
	if (m->row_flags & (ROW_LOG_OPEN | ROW_LOG_CLOSE))
		report(m, EVENT_DENY, reason);
	return action == ACTION_REJECT ? reject(ctx, m, reason) : drop(ctx, reason);
}

static __always_inline u32 default_action(struct meta *m)
{
	u32 bank = m->bank;
	struct ruleset *rules = rulesets.lookup(&bank);

	if (m->out_zone == ZONE_SELF || !rules)
		return ACTION_DENY;
	return m->key.zone == ZONE_SELF ? ACTION_PERMIT : rules->default_action;
}

/* ACTION_; the record gets the rule and how to go on with it. */
static __always_inline u32 judge(struct meta *m)
{
	struct rule_row *row = row_of(m->bank, TABLE_POLICY, first_match(m, TABLE_POLICY, (u32)m->key.zone * MAX_ZONES + m->out_zone, &m->daddr));

	m->rule = 0;
	m->row_flags = 0;
	m->app_timeout = 0;
	if (!row)
		return default_action(m);
	m->rule = row->rule;
	m->row_flags = row->flags | ROW_MATCHED;
	m->app_timeout = row->timeout;
	return row->action;
}

/* The end of a packet of no session, or the way to the one that it begins. `group`: multicast, for this machine. */
static __always_inline int police(struct xdp_md *ctx, struct meta *m, bool group)
{
	u32 action, matched;

	m->session_id = 0;
	action = judge(m);
	matched = m->row_flags & ROW_MATCHED;
	if (action == ACTION_PERMIT) {
		if (!group && m->in_flags & PORT_SESSION_LIMIT)
			return go(ctx, STAGE_SESSION_LIMIT);
		if (!group)
			return go(ctx, STAGE_CREATE);
		count_rule(m->rule, m->length);
		return deliver(ctx, m, REASON_HOST);
	}
	if (!matched)
		return refuse(ctx, m, action, REASON_DEFAULT_DENY);
	return refuse(ctx, m, action, action == ACTION_REJECT ? REASON_POLICY_REJECT : REASON_POLICY_DENY);
}

/* Flows that the tunnel stage has looked at, and multicast and broadcast: of those the policies of the machine itself
 * decide, and no session begins. */
int stage_policy(struct xdp_md *ctx)
{
	struct meta *m = meta_of(META_XDP);
	bool group;

	if (!m)
		return drop(ctx, REASON_NO_STAGE);
	group = is_group(&m->key.daddr);
	if (group) {
		remain(m);
		m->out_zone = ZONE_SELF;
	}
	return police(ctx, m, group);
}
