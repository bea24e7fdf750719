/* SPDX-License-Identifier: GPL-2.0
 *
 * The flow stage: a packet of a known session. One lookup decides an established packet; the second direction is
 * looked at only when TCP changes its state or the session may have ended.
 */
#define LEFT_ZONE	0x200	/* marks fragments by what they became, beside those that arrived */

static __always_inline u32 state_timeout(struct meta *m, struct session *s, u8 state)
{
	u32 bank = m->bank, slot;
	struct ruleset *rules = rulesets.lookup(&bank);

	if (!rules)
		return s->timeout;
	if (state == STATE_ESTABLISHED)
		return s->app_timeout ? s->app_timeout : rules->timeouts[TIMEOUT_TCP_ESTABLISHED];
	slot = TIMEOUT_TCP_CLOSED;
	if (state == STATE_OPENING || state == STATE_ANSWERED)
		slot = TIMEOUT_TCP_OPENING;
	else if (state == STATE_CLOSING)
		slot = TIMEOUT_TCP_CLOSING;
	else if (state == STATE_TIME_WAIT)
		slot = TIMEOUT_TCP_TIME_WAIT;
	return rules->timeouts[slot];
}

static __always_inline void enter_state(struct meta *m, struct session *s, struct session *peer, u8 state)
{
	u32 timeout = state_timeout(m, s, state);

	s->state = state;
	s->timeout = timeout;
	if (peer) {
		peer->state = state;
		peer->timeout = timeout;
	}
}

static __always_inline bool is_live(struct session *s, u64 now)
{
	return s->last_seen_ns + s->timeout * SECOND_NS >= now;
}

/* What a TCP packet with SYN, FIN or RST, or before or after the established state, does to its session. NEXT to
 * go on, SESSION_CLOSED to drop it. RFC 9293 3.3.2 as far as a bystander needs it; a RST must hit the number that the
 * other side expects (RFC 5961 3.2), or it passes without effect here. */
static __always_inline u32 tcp_step(struct meta *m, struct session *s, struct session *peer)
{
	u8 flags = m->tcp_flags, state = s->state;

	if (flags & TCP_RST) {
		if (state == STATE_OPENING || state == STATE_ANSWERED ||
		    (peer && peer->flags & SESSION_ACKED && peer->ack == m->seq))
			if (state != STATE_CLOSED)
				enter_state(m, s, peer, STATE_CLOSED);
		return NEXT;
	}
	if (state == STATE_CLOSED)
		return REASON_SESSION_CLOSED;
	if (state == STATE_OPENING && s->flags & SESSION_REVERSE && flags & TCP_SYN && flags & TCP_ACK)
		enter_state(m, s, peer, STATE_ANSWERED);
	else if (state == STATE_OPENING && m->in_flags & PORT_TUNNEL && s->flags & SESSION_TO_SELF &&
		 (flags & (TCP_SYN | TCP_ACK)) == TCP_ACK)	/* its answers leave encrypted by the kernel, unseen */
		enter_state(m, s, peer, STATE_ESTABLISHED);
	else if (state == STATE_ANSWERED && !(s->flags & SESSION_REVERSE) && flags & TCP_ACK && !(flags & TCP_SYN))
		enter_state(m, s, peer, STATE_ESTABLISHED);
	if (flags & TCP_FIN && s->state >= STATE_ANSWERED && s->state <= STATE_CLOSING) {
		s->flags |= SESSION_FIN;
		enter_state(m, s, peer, peer && peer->flags & SESSION_FIN ? STATE_TIME_WAIT : STATE_CLOSING);
	}
	return NEXT;
}

/* Of a first fragment whose translation is known, two marks: the packet as it arrived leads later fragments to the flow,
 * and what it became leads ICMP errors about them to the other direction. */
static __always_inline void remember_fragment(struct meta *m)
{
	struct fragment_key key = {
		.saddr = m->key.saddr, .daddr = m->key.daddr, .id = m->fragment_id, .zone = m->key.zone,
		.protocol = m->v6 ? 0 : m->key.protocol,
	};
	bool crosses = m->flags & META_NAT64;
	struct fragment fragment = { .key = m->key, .seen_ns = bpf_ktime_get_coarse_ns() };

	fragments.update(&key, &fragment);
	if (m->flags & META_TO_SELF)
		return;
	key.saddr = m->saddr;
	key.daddr = m->daddr;
	key.zone = m->out_zone | LEFT_ZONE;
	if (crosses) {
		fragment.key.protocol = crossed(m->key.protocol);
		key.protocol = m->v6 ? fragment.key.protocol : 0;
		key.id = m->v6 ? (__be32)htons(ntohl(m->fragment_id)) : htonl(ntohs(m->fragment_id));
	}
	fragment.key.saddr = m->daddr;
	fragment.key.daddr = m->saddr;
	fragment.key.sport = m->dport;
	fragment.key.dport = m->sport;
	fragment.key.zone = m->out_zone;
	fragments.update(&key, &fragment);
}

static __always_inline void become(struct meta *m, struct session *s)
{
	m->out_zone = s->out_zone;
	m->mss = s->mss;
	if (s->flags & SESSION_NAT) {
		m->flags |= META_NAT;
		if (s->flags & SESSION_NAT64) {
			m->flags |= META_NAT64;
			m->embedded = s->embedded;
		}
		m->saddr = s->saddr;
		m->daddr = s->daddr;
		m->sport = s->sport;
		m->dport = s->dport;
		m->address_change = s->address_change;
		m->l4_change = s->l4_change;
	}
	if (s->flags & SESSION_TO_SELF)
		m->flags |= META_TO_SELF;
}

static __always_inline void describe_end(struct event *event, const struct flow_key *key, struct session *s,
					 struct session *back, u64 now)
{
	event->time_ns = now;
	event->session = s->id;
	event->key = *key;
	event->saddr = s->saddr;
	event->daddr = s->daddr;
	event->sport = s->sport;
	event->dport = s->dport;
	event->out_zone = s->out_zone;
	event->kind = EVENT_CLOSE;
	event->rule = s->rule;
	event->reason = s->state >= STATE_TIME_WAIT ? s->state : 0;
	event->snat_rule = s->snat_rule;
	event->dnat_rule = s->dnat_rule;
	event->created_ns = s->created_ns;
	event->packets = s->own_packets + s->far_packets;
	event->octets = s->own_octets + s->far_octets;
	if (back) {
		event->back_packets = back->own_packets + back->far_packets;
		event->back_octets = back->own_octets + back->far_octets;
	}
}

/* Remove a session that is over before the collector came by. The reverse entry goes first, and who removes the
 * forward one tells of the end. What there is to tell is read before: a removed entry may be another one at once. */
static __always_inline void end_session(struct meta *m, struct session *s, u64 now)
{
	struct flow_key reply;
	struct event event = {};
	struct session *peer;
	bool reverse = s->flags & SESSION_REVERSE, logged = s->flags & SESSION_LOG_CLOSE;

	reply_key(&reply, s, m->key.protocol);
	peer = sessions.lookup(&reply);
	if (logged && !reverse)
		describe_end(&event, &m->key, s, peer, now);
	else if (logged && peer)
		describe_end(&event, &reply, peer, s, now);
	sessions.delete(reverse ? &m->key : &reply);
	if (sessions.delete(reverse ? &reply : &m->key))
		return;
	release_session(m->bank, reverse ? &reply : &m->key);
	if (event.kind)
		tell(&event);
}

/* A direction keeps to one CPU as a rule. Two atomic additions would be an eighth of what an established packet costs; XDP
 * and TC both run with softirqs off, so the CPU that owns the direction needs none. */
static __always_inline void count_packet(struct session *s, u64 octets)
{
	u64 cpu = bpf_get_smp_processor_id() + 1;

	if (!s->owner)
		__sync_val_compare_and_swap(&s->owner, 0, cpu);
	if (s->owner == cpu) {
		s->own_packets++;
		s->own_octets += octets;
		return;
	}
	__sync_fetch_and_add(&s->far_packets, 1);
	__sync_fetch_and_add(&s->far_octets, octets);
}

/* NEXT: a packet of the session. A session that is over is removed, and the packet is as if it had none. */
static __always_inline u32 flow_step(struct meta *m, struct session *s, u64 now, bool *over)
{
	bool tcp = m->key.protocol == IPPROTO_TCP && !(m->flags & META_LATER), live = is_live(s, now);
	bool event = tcp && (s->state != STATE_ESTABLISHED || m->tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST));
	struct session *peer = NULL;
	struct flow_key reply;
	bool closed = false;
	u32 reason;

	if (!live || event) {
		reply_key(&reply, s, m->key.protocol);
		peer = sessions.lookup(&reply);
		if (!live && !(peer && is_live(peer, now)))
			*over = true;
		else if (tcp && (m->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN &&
			 (s->state == STATE_TIME_WAIT || s->state == STATE_CLOSED))
			*over = true;
		if (*over)
			return NEXT;
		if (event) {
			closed = s->state == STATE_CLOSED;	/* a RST goes by, but keeps nothing alive */
			reason = tcp_step(m, s, peer);
			if (reason != NEXT)
				return reason;
		}
	}
	if (tcp && m->tcp_flags & TCP_ACK) {
		s->ack = m->ack;
		s->flags |= SESSION_ACKED;
	}
	if (!closed)
		s->last_seen_ns = now;
	count_packet(s, m->length);
	return NEXT;
}

int stage_flow(struct xdp_md *ctx)
{
	struct meta *m = meta_of(META_XDP);
	struct session *s;
	bool over = false, routed;
	u32 reason;
	u64 now;

	if (!m)
		return drop(ctx, REASON_NO_STAGE);
	s = sessions.lookup(&m->key);
	if (!s)
		return go(ctx, STAGE_NEW);
	now = bpf_ktime_get_coarse_ns();
	reason = NEXT;
	if (s->flags & SESSION_TRANSLATOR)
		reason = translator_step(m, s, &over);
	if (reason == NEXT && !over)
		reason = flow_step(m, s, now, &over);
	if (reason != NEXT)
		return drop(ctx, reason);
	if (over) {
		m->flags &= ~META_TRANSLATOR;	/* the next session of this flow may be XDP's */
		end_session(m, s, now);
		return go(ctx, STAGE_NEW);
	}
	count_for_pool(s);
	become(m, s);
	routed = s->out_ifindex && s->fib_generation == (u32)control_value(CONTROL_FIB_GENERATION) &&
		 s->fib_ns + ROUTE_NS >= now && !(m->mss && m->tcp_flags & TCP_SYN);
	if (!(m->flags & META_NAT) && (!routed || m->shape & SHAPE_FRAGMENT))
		remain(m);
	if (m->shape & SHAPE_FRAGMENT)
		remember_fragment(m);
	if (!routed)
		return go(ctx, STAGE_FORWARD);
	m->flags |= META_ROUTED;
	m->out_flags = PORT_REDIRECT;
	m->out_ifindex = s->out_ifindex;
	m->out_vid = s->out_vid;
	m->mtu = s->mtu;
	__builtin_memcpy(m->dmac, s->dmac, sizeof(m->dmac));
	__builtin_memcpy(m->smac, s->smac, sizeof(m->smac));
	return leave_by(ctx, m, false);
}
