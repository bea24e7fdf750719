/* SPDX-License-Identifier: GPL-2.0
 *
 * The create stage: source NAT, and the pair of entries that makes a session. The reverse entry goes in first: it
 * reserves the translated flow.
 */
#define EXISTS		(-17)	/* -EEXIST */
#define DYNAMIC_LOW	1024	/* ports of interface NAT */
#define DYNAMIC_HIGH	65535
#define MURMUR_1	0xcc9e2d51
#define MURMUR_2	0x1b873593
#define MURMUR_3	0xe6546b64
#define MURMUR_4	0x85ebca6b
#define MURMUR_5	0xc2b2ae35

static __always_inline u32 mix32(u32 state, u32 word)
{
	word *= MURMUR_1;
	word = word << 15 | word >> 17;
	word *= MURMUR_2;
	state ^= word;
	state = state << 13 | state >> 19;
	return state * 5 + MURMUR_3;
}

static __always_inline u32 mix_address(u32 state, const struct address *a)
{
	state = mix32(state, a->addr[0]);
	state = mix32(state, a->addr[1]);
	state = mix32(state, a->addr[2]);
	return mix32(state, a->addr[3]);
}

static __always_inline u32 finish32(u32 state)
{
	state ^= state >> 16;
	state *= MURMUR_4;
	state ^= state >> 13;
	state *= MURMUR_5;
	return state ^ state >> 16;
}

static __always_inline u32 flow_hash(const struct flow_key *key, u32 seed)
{
	u32 state = mix_address(mix_address(seed, &key->saddr), &key->daddr);

	state = mix32(state, key->sport | (u32)key->dport << 16);
	return finish32(mix32(state, key->protocol));
}

static __always_inline bool has_choice(struct meta *m)
{
	return has_ports(m->key.protocol) || (is_icmp(m) && is_icmp_query(m->v6, m->code >> 8));
}

/* Where the translated source comes from. */
struct source {
	struct address first;
	u32 addresses;
	u16 low;
	u16 high;
	u32 persistent;
	u32 overflow;	/* pool index + 1 */
	u32 translator;	/* as in the pool, whose XDP's addresses these are */
	bool tried;	/* addresses and ports of a range, one after the other */
};

/* Deterministic NAT (RFC 7422): a subscriber has ports of one address to itself, told by its place among them all. */
static __always_inline void take_block(struct source *source, u32 block, u32 subscriber)
{
	u32 blocks = ((u32)source->high - source->low + 1) / block;

	if (!blocks || subscriber / blocks >= source->addresses) {
		source->addresses = 0;
		return;
	}
	source->first.addr[3] = htonl(ntohl(source->first.addr[3]) + subscriber / blocks);
	source->addresses = 1;
	source->low += subscriber % blocks * block;
	source->high = source->low + block - 1;
}

static __always_inline struct pool *take_pool(struct source *source, u32 bank, u32 index)
{
	u32 slot = (bank * MAX_POOLS) + (index & (MAX_POOLS - 1));
	struct pool *pool = pools.lookup(&slot);

	source->addresses = 0;
	if (!pool)
		return NULL;
	source->first = pool->first;
	source->addresses = pool->addresses;
	source->low = pool->low;
	source->high = pool->high;
	source->persistent = pool->persistent;
	source->overflow = pool->overflow;
	source->translator = pool->translator;
	return pool;
}

/* The n-th address and port to try. The port that the client chose comes first if the pool has it. */
static __always_inline void candidate(struct meta *m, const struct source *source, u32 hash, u32 seed, u32 n)
{
	u32 range = (u32)source->high - source->low + 1, chosen = ntohs(m->key.sport);
	bool first = chosen >= source->low && chosen <= source->high;
	u32 pick = source->persistent ? finish32(mix_address(seed, &m->key.saddr)) : hash;

	m->saddr = source->first;
	if (source->addresses > 1)
		m->saddr.addr[3] = htonl(ntohl(source->first.addr[3]) + pick % source->addresses);
	if (!has_choice(m))
		return;
	if (!first || n)
		chosen = source->low + (hash + (n - first) * NAT_STEP) % (range ? range : 1);
	m->sport = htons(chosen);
	if (is_icmp(m))
		m->dport = m->sport;
}

/* Of the reverse entry of the flow in hand. */
static __always_inline void reverse_key(struct flow_key *key, struct meta *m)
{
	key->saddr = m->daddr;
	key->daddr = m->saddr;
	key->sport = m->dport;
	key->dport = m->sport;
	key->zone = m->out_zone;
	key->protocol = m->reply_protocol;
	key->reserved = 0;
}

/* Put the reverse entry in. 0, EXISTS, or another errno. */
static __always_inline int reserve(struct meta *m)
{
	struct flow_key key;

	if (m->flags & META_NAT) {
		sum_changes(m);
		m->fresh.address_change = ~m->address_change;
		m->fresh.l4_change = ~m->l4_change;
	}
	m->fresh.flags = SESSION_REVERSE;
	m->fresh.saddr = m->key.daddr;
	m->fresh.daddr = m->key.saddr;
	m->fresh.sport = m->key.dport;
	m->fresh.dport = m->key.sport;
	m->fresh.out_zone = m->key.zone;
	m->fresh.own_packets = 0;
	m->fresh.own_octets = 0;
	m->fresh.owner = 0;
	m->fresh.flags |= m->flags & META_TRANSLATOR ? SESSION_TRANSLATOR : 0;
	if (m->key.zone == ZONE_SELF)
		m->fresh.flags |= SESSION_TO_SELF;
	if (m->flags & META_NAT)
		m->fresh.flags |= SESSION_NAT;
	if (m->flags & META_NAT64)
		m->fresh.flags |= SESSION_NAT64;
	if (m->row_flags & ROW_LOG_CLOSE)
		m->fresh.flags |= SESSION_LOG_CLOSE;
	reverse_key(&key, m);
	return sessions.insert(&key, &m->fresh);
}

static __always_inline u32 reason_of(int error)
{
	return error == EXISTS ? REASON_NAT_EXHAUSTED : REASON_SESSIONS_FULL;
}

static __always_inline u32 reserve_from(struct meta *m, struct source *source)
{
	u32 seed = control_value(CONTROL_SEED), hash = flow_hash(&m->key, seed), n, tries, overflow;
	int error = EXISTS;

	tries = has_choice(m) ? NAT_TRIES : 1;
	overflow = source->overflow;
	for (n = 0; n < 2 * NAT_TRIES; n++) {
		if (n == tries) {
			if (!overflow)
				break;
			take_pool(source, m->bank, overflow - 1);
		}
		if (n >= 2 * tries || !source->addresses)
			break;
		candidate(m, source, hash, seed, n < tries ? n : n - tries);
		error = reserve(m);
		if (error != EXISTS)
			break;
	}
	return error ? reason_of(error) : NEXT;
}

/* What source NAT has for a flow from its zone into the one that it leaves by: another source at once, or a range to try.
 * NEXT, or why it has none. */
static __always_inline u32 choose_source(struct meta *m, struct source *source)
{
	struct rule_row *row = NULL;
	u32 action = NAT_OFF, pool = 0;
	struct pool *chosen;

	if (m->flags & META_NAT64) {
		action = m->nat64_pool == NO_ROW ? NAT_INTERFACE : NAT_POOL;
		pool = m->nat64_pool;
	} else if (m->out_zone != ZONE_SELF && m->key.zone != ZONE_SELF)	/* TC egress cannot translate */
		row = row_of(m->bank, TABLE_SNAT, first_match(m, TABLE_SNAT, (u32)m->key.zone * MAX_ZONES + m->out_zone, &m->daddr));
	if (row) {
		m->fresh.snat_rule = row->rule;
		action = row->action;
		pool = row->pool;
	}
	if (row && action == NAT_PREFIX) {
		m->flags |= META_NAT;
		put_prefix(&m->saddr, &row->to, row->prefixlen);
	}
	if (row && action == NAT_NPTV6) {
		m->flags |= META_NAT;
		if (!put_neutral_prefix(&m->saddr, row))
			return REASON_NPTV6_UNMAPPABLE;
	}
	source->tried = action == NAT_INTERFACE || action == NAT_POOL;
	if (!source->tried)
		return NEXT;
	m->flags |= META_NAT;
	if (action == NAT_POOL) {
		chosen = take_pool(source, m->bank, pool);
		if (chosen && chosen->block)
			take_block(source, chosen->block, ntohl(m->key.saddr.addr[3]) - ntohl(chosen->subscribers));
		return NEXT;
	}
	source->first = becomes_v6(m) ? m->out6 : m->out4;
	return is_unspecified(&source->first) ? REASON_NAT_NO_ADDRESS : NEXT;
}

/* Source NAT and the reverse entry. NEXT, or why there is no session. */
static __always_inline u32 translate_source(struct meta *m)
{
	struct source source = { .addresses = 1, .low = DYNAMIC_LOW, .high = DYNAMIC_HIGH };
	u32 flags = m->flags, reason = choose_source(m, &source), tag;
	int error;

	if (reason != NEXT)
		return reason;
	tag = m->flags & META_NAT64 ? 0 : source.translator & ~POOL_AUTO;
	if (tag) {
		count_pool(tag, 1);
		m->fresh.embedded = tag;
		if (is_for_translator(m, source.translator)) {
			source.tried = false;
			m->flags = flags | META_TRANSLATOR;
			m->embedded = tag;
		}
	}
	m->reply_protocol = m->flags & META_NAT64 ? crossed(m->key.protocol) : m->key.protocol;
	if (source.tried) {
		reason = reserve_from(m, &source);
		if (reason == REASON_NAT_EXHAUSTED && tag && has_choice(m))
			count_refused(tag);
		return reason;
	}
	error = reserve(m);
	return error ? reason_of(error) : NEXT;
}

/* What the kernel is going to do with the translated packet is what was decided before. If not, it would leave in clear
 * though a policy protects it, or go into a tunnel past the policies for tunnels. */
static __always_inline bool leaves_as_judged(struct meta *m)
{
	struct tunnel *t = NULL;
	struct port *port;
	u32 list;

	if ((m->flags & (META_FAR | META_NAT)) != (META_FAR | META_NAT))
		return true;
	list = tunnel_list(TUNNEL_OUT, &m->daddr);
	if (list)
		t = protecting(m, list, &m->saddr, m->sport);
	if (!t)
		return !(m->flags & META_INTO);
	port = port_of_tunnel(m, t);
	return m->flags & META_INTO && port && port->zone == m->out_zone;
}

static __always_inline void begin(struct meta *m, u64 now)
{
	u32 bank = m->bank, slot = TIMEOUT_OTHER, timeout = 0;
	struct ruleset *rules = rulesets.lookup(&bank);
	struct session *s = &m->fresh;

	__builtin_memset(s, 0, sizeof(*s));
	s->state = STATE_ESTABLISHED;
	if (m->key.protocol == IPPROTO_TCP) {
		slot = TIMEOUT_TCP_ESTABLISHED;
		if (m->tcp_flags & TCP_SYN) {
			s->state = STATE_OPENING;
			slot = TIMEOUT_TCP_OPENING;
		}
	} else if (m->key.protocol == IPPROTO_UDP) {
		slot = TIMEOUT_UDP;
	} else if (is_icmp(m)) {
		slot = TIMEOUT_ICMP;
	}
	if (rules)
		timeout = rules->timeouts[slot];
	if (m->app_timeout && s->state == STATE_ESTABLISHED)
		timeout = m->app_timeout;
	/* Unique over CPUs, XDP and TC, and over versions of the programs: they begin at the microseconds since boot. */
	if (!m->next_id)
		m->next_id = bpf_ktime_get_ns() >> 10;
	m->session_id = (u64)bpf_get_smp_processor_id() << 48 | (u64)m->on_egress << 47 | ++m->next_id;
	s->last_seen_ns = now;
	s->timeout = timeout;
	s->app_timeout = m->app_timeout;
	s->id = m->session_id;
	s->created_ns = now;
	s->rule = m->rule;
	s->dnat_rule = m->dnat_rule;
	s->embedded = m->flags & META_NAT64 ? m->embedded : 0;
	s->mss = m->in_mss;
	if (m->out_zone != ZONE_SELF && m->out_mss && (!s->mss || m->out_mss < s->mss))
		s->mss = m->out_mss;
}

/* The forward entry, after the reverse one. */
static __always_inline int put_forward(struct meta *m)
{
	struct session *s = &m->fresh;

	s->flags = m->flags & META_TRANSLATOR ? SESSION_TRANSLATOR : 0;
	if (m->flags & META_NAT)
		s->flags |= SESSION_NAT;
	if (m->flags & META_NAT64)
		s->flags |= SESSION_NAT64;
	if (m->out_zone == ZONE_SELF)
		s->flags |= SESSION_TO_SELF;
	if (m->row_flags & ROW_LOG_CLOSE)
		s->flags |= SESSION_LOG_CLOSE;
	s->saddr = m->saddr;
	s->daddr = m->daddr;
	s->sport = m->sport;
	s->dport = m->dport;
	if (m->flags & META_NAT) {
		s->address_change = m->address_change;
		s->l4_change = m->l4_change;
	}
	s->out_zone = m->out_zone;
	s->owner = bpf_get_smp_processor_id() + 1;
	s->own_packets = 1;
	s->own_octets = m->length;
	if (m->key.protocol == IPPROTO_TCP && m->tcp_flags & TCP_ACK) {
		s->ack = m->ack;
		s->flags |= SESSION_ACKED;
	}
	keep_route(m, s);
	return sessions.insert(&m->key, s);
}

/* NEXT and a session, or why not. */
static __always_inline u32 create(struct meta *m)
{
	u32 reason;
	struct flow_key reply;

	begin(m, bpf_ktime_get_coarse_ns());
	if (m->dnat_rule || !same_address(&m->daddr, &m->key.daddr) || m->dport != m->key.dport)
		m->flags |= META_NAT;
	reason = translate_source(m);
	if (reason != NEXT)
		return reason;
	if (!leaves_as_judged(m))
		reason = REASON_TUNNEL_NAT;
	else if (put_forward(m))
		reason = REASON_SESSIONS_FULL;
	if (reason != NEXT) {
		reverse_key(&reply, m);
		sessions.delete(&reply);
		return reason;
	}
	count_rule(m->rule, m->length);
	count_rule(m->dnat_rule, m->length);
	count_rule(m->fresh.snat_rule, m->length);
	if (m->row_flags & ROW_LOG_OPEN)
		report(m, EVENT_OPEN, 0);
	return NEXT;
}

int stage_create(struct xdp_md *ctx)
{
	struct meta *m = meta_of(META_XDP);
	u32 reason;

	if (!m)
		return drop(ctx, REASON_NO_STAGE);
	reason = create(m);
	if (reason != NEXT) {
		if (m->in_flags & PORT_SESSION_LIMIT)
			release_session(m->bank, &m->key);
		return reason == REASON_NPTV6_UNMAPPABLE ? unmappable(ctx, m, SOURCE_AT) : drop(ctx, reason);
	}
	m->mss = m->fresh.mss;
	if (m->shape & SHAPE_FRAGMENT)
		remember_fragment(m);
	if (m->flags & META_TO_SELF)
		return go(ctx, STAGE_FORWARD);
	return leave_by(ctx, m, wants_clamp(m));
}
