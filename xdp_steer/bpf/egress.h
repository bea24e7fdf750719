/* SPDX-License-Identifier: GPL-2.0
 *
 * The firewall on TC egress: what the kernel sends. What XDP redirects does not come here.
 *
 * A packet of this machine opens a session (or belongs to one), so that its answers are let in. A packet that the kernel
 * forwards was judged and translated by XDP before, so the session of its answers exists: without one it is dropped.
 * The sockets of this machine are trusted to know their TCP: a session may start in the middle, which keeps
 * connections alive that are older than the firewall.
 */
#define WHOLE_L4	0xffff	/* no IP length to hold the header against: a GSO packet may have none */
#define EGRESS_ZONE	0x100	/* marks fragments that were let out, beside those that were let in */
#define UNTRANSLATED	(SESSION_TRANSLATOR | SESSION_REVERSE)	/* answered like that, it goes out past VPP */

static __always_inline int tc_drop(struct __sk_buff *skb, u32 reason)
{
	count_verdict(reason, skb->len, 1);
	return TC_ACT_SHOT;
}

static __always_inline int tc_pass(struct __sk_buff *skb, u32 reason)
{
	count_verdict(reason, skb->len, 1);
	return TC_ACT_UNSPEC;
}

/* Into the pipeline by the veth pair of the tunnels, as what comes out of one. `row` is that of the pair's port, `bare`:
 * there is no Ethernet header yet. */
static __always_inline int into_pipeline(struct __sk_buff *skb, u16 row, bool bare, u32 reason)
{
	u8 header[sizeof(struct ethhdr)] = TUNNEL_PORT_MAC;
	__be16 coded = htons(row), protocol = skb->protocol;
	u32 octets = skb->len;

	__builtin_memcpy(header + TUNNEL_PORT_ZONE_AT, &coded, sizeof(coded));
	__builtin_memcpy(header + 2 * ETH_ALEN, &protocol, sizeof(protocol));
	if (bare && bpf_skb_change_head(skb, sizeof(header), 0))
		return tc_drop(skb, REASON_NO_STAGE);
	if (bpf_skb_store_bytes(skb, 0, header, bare ? sizeof(header) : 2 * ETH_ALEN, 0))
		return tc_drop(skb, REASON_NO_STAGE);
	count_verdict(reason, octets, 1);
	return bpf_redirect(control_value(CONTROL_TUNNEL_ENTRY), 0);
}

/* Out, unless the filter of its port is against it. */
static __always_inline int let_go(struct __sk_buff *skb, struct meta *m, u32 reason)
{
	if (!m->out_filter)
		return tc_pass(skb, reason);
	m->reason = reason;
	egress_stages.call(skb, EGRESS_STAGE_FILTER);
	return tc_drop(skb, REASON_NO_STAGE);
}

static __always_inline void fragment_let_out(struct fragment_key *key, struct meta *m)
{
	key->saddr = m->key.saddr;
	key->daddr = m->key.daddr;
	key->id = m->fragment_id;
	key->zone = m->out_zone | EGRESS_ZONE;
	key->protocol = m->v6 ? 0 : m->key.protocol;
	key->reserved = 0;
}

static __always_inline bool has_live(struct flow_key *key, u8 protocol)
{
	struct session *s = sessions.lookup(key), *peer;
	u64 now = bpf_ktime_get_coarse_ns();
	struct flow_key reply;

	if (!s || (s->flags & UNTRANSLATED) == UNTRANSLATED)
		return false;
	if (is_live(s, now))
		return true;
	reply_key(&reply, s, protocol);
	peer = sessions.lookup(&reply);
	return peer && is_live(peer, now);
}

/* The kernel forwards it: is it the other side of a session that lets answers in from where it goes? */
static __always_inline bool is_judged(struct meta *m)
{
	struct fragment_key piece;
	struct fragment letting = {};
	struct flow_key key;

	fragment_let_out(&piece, m);
	if (m->flags & META_LATER) {
		struct fragment *first = fragments.lookup(&piece);

		return first && first->seen_ns + FRAGMENT_SECONDS * SECOND_NS >= bpf_ktime_get_coarse_ns();
	}
	key.saddr = m->key.daddr;
	key.daddr = m->key.saddr;
	key.sport = m->key.dport;
	key.dport = m->key.sport;
	key.zone = m->out_zone;
	key.protocol = m->key.protocol;
	key.reserved = 0;
	if (!has_live(&key, key.protocol))
		return false;
	if (m->shape & SHAPE_FRAGMENT) {
		letting.seen_ns = bpf_ktime_get_coarse_ns();
		fragments.update(&piece, &letting);
	}
	return true;
}

/* An ICMP error that the kernel forwards: XDP has put into it what its receiver sent, which comes in from there. */
static __always_inline bool is_judged_error(struct __sk_buff *skb, struct meta *m)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct flow_key key = {};
	struct inner inner = {};

	if (!parse_inner(data, end, m, &inner))
		return false;
	if (inner.later)
		return flow_of_fragment(m, &inner, m->out_zone, &key) && has_live(&key, key.protocol);
	key.saddr = inner.saddr;
	key.daddr = inner.daddr;
	key.sport = inner.sport;
	key.dport = inner.dport;
	key.zone = m->out_zone;
	key.protocol = inner.protocol;
	return has_live(&key, inner.protocol);
}

/* What VPP has translated has no session of its own: it comes by VPP's port, from an address of a pool that leads there. */
static __always_inline bool is_translated(struct __sk_buff *skb, struct meta *m)
{
	struct port *port;
	u32 pool;

	if (skb->ingress_ifindex != control_value(CONTROL_TRANSLATOR_PORT))
		return false;
	pool = translator_of(m->bank, &m->key.saddr);
	port = pool ? port_of_pool(m->bank, pool) : NULL;
	return port && port->zone == m->out_zone;
}

/* An error of this machine (most say that fragmentation is needed) about what XDP has translated into a tunnel, to the
 * address that its source became. */
static __always_inline bool is_about_translated(struct __sk_buff *skb, struct meta *m, u16 zone)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct flow_key key = {};
	struct inner inner = {};
	struct session *s;

	if (!parse_inner(data, end, m, &inner) || !same_address(&inner.saddr, &m->key.daddr))
		return false;
	key.saddr = inner.daddr;
	key.daddr = inner.saddr;
	key.sport = inner.dport;
	key.dport = inner.sport;
	key.zone = zone;
	key.protocol = inner.protocol;
	if (inner.later && !flow_of_fragment(m, &inner, zone | LEFT_ZONE, &key))
		return false;
	s = sessions.lookup(&key);
	return s && s->flags & SESSION_NAT && !(s->flags & SESSION_TO_SELF);
}

/* The kernel's errors about what it should encrypt go by its routes to an address that is not there. They take the way of
 * errors that come out of the tunnel instead, to whoever sent the packet. */
static __always_inline bool turns_back(struct __sk_buff *skb, struct meta *m)
{
	struct port *port;

	if (m->flags & META_LATER || m->shape & SHAPE_TAGGED || skb->vlan_present || !is_icmp(m) ||
	    !is_icmp_error(m->v6, m->code >> 8))
		return false;
	port = port_of(control_value(CONTROL_TUNNEL_PORT), 0, m->bank);
	return port && is_about_translated(skb, m, port->zone);
}

static __always_inline bool is_exempt(struct meta *m)
{
	u8 type = m->code >> 8;

	if (m->flags & META_LATER || is_group(&m->key.daddr) || is_ipsec(m->key.protocol, m->key.sport))
		return true;
	if (m->key.protocol == IPPROTO_TCP)
		return m->tcp_flags & TCP_RST;
	return is_icmp(m) && !is_icmp_request(m->v6, type);
}

/* IPsec and neighbour discovery of this machine: no filter may stop them. */
static __always_inline bool is_always_let_out(struct meta *m)
{
	u8 type = m->code >> 8;

	if (m->flags & META_LATER)
		return is_ipsec(m->key.protocol, htons(PORT_IKE));
	return is_ipsec(m->key.protocol, m->key.sport) || (m->v6 && is_icmp(m) && type >= NDP_FIRST && type <= NDP_LAST);
}

static __always_inline int egress_local(struct __sk_buff *skb, struct meta *m)
{
	struct session *s;
	bool over = false;
	u32 reason;
	u64 now;

	m->key.zone = ZONE_SELF;
	s = sessions.lookup(&m->key);
	if (s) {
		now = bpf_ktime_get_coarse_ns();
		reason = flow_step(m, s, now, &over);
		if (reason != NEXT)
			return tc_drop(skb, reason);
		if (!over) {
			become(m, s);
			/* The answer of a service that destination NAT led here. */
			if (m->flags & META_NAT && rewrite((void *)(long)skb->data, (void *)(long)skb->data_end, m) != NEXT)
				return tc_drop(skb, REASON_EGRESS_UNPOLICED);
			return let_go(skb, m, REASON_EGRESS_SESSION);
		}
		end_session(m, s, now);
	}
	if (is_always_let_out(m))
		return tc_pass(skb, REASON_EGRESS_EXEMPT);
	if (turns_back(skb, m))
		return into_pipeline(skb, 0, !m->l3, REASON_EGRESS_TURNED);
	if (is_exempt(m))
		return let_go(skb, m, REASON_EGRESS_EXEMPT);
	remain(m);
	egress_stages.call(skb, EGRESS_STAGE_NEW);
	return tc_drop(skb, REASON_NO_STAGE);
}

static __always_inline int egress(struct __sk_buff *skb, struct packet *pkt, bool sound)
{
	u16 vid = ntohs(pkt->tci) & VID_MASK;
	struct meta *m = meta_of(META_TC);
	void *data = (void *)(long)skb->data;
	struct port *port;
	bool judged;

	if (!m)
		return tc_drop(skb, REASON_NO_STAGE);
	if (skb->vlan_present)
		vid = skb->vlan_tci & VID_MASK;
	m->bank = control_value(CONTROL_BANK) & 1;
	port = port_of(skb->ifindex, vid, m->bank);
	if (!port)
		return TC_ACT_UNSPEC;
	if (!sound)
		return tc_drop(skb, REASON_EGRESS_UNPOLICED);
	m->key.saddr = pkt->source;
	m->key.daddr.addr[0] = pkt->key.addr[0];
	m->key.daddr.addr[1] = pkt->key.addr[1];
	m->key.daddr.addr[2] = pkt->key.addr[2];
	m->key.daddr.addr[3] = pkt->key.addr[3];
	m->key.sport = 0;
	m->key.dport = 0;
	m->key.protocol = pkt->protocol;
	m->key.reserved = 0;
	m->v6 = !!(pkt->shape & SHAPE_IPV6);
	m->code = 0;
	m->length = pkt->length;
	m->l3 = pkt->l3 - data;
	m->l4 = pkt->cursor - data;
	m->on_egress = 1;
	m->in_flags = PORT_PARTIAL;	/* the kernel leaves the checksum of what it sends to the hardware */
	m->in_mss = 0;
	m->shape = pkt->shape;
	m->tcp_flags = 0;
	m->flags = 0;
	m->fragment_id = pkt->fragment_id;
	m->out_zone = port->zone;
	m->out_mss = port->mss;
	m->out_filter = port->out_filter;
	m->dnat_rule = 0;
	if (pkt->shape & SHAPE_LATER)
		m->flags = META_LATER;
	else if ((m->v6 && is_extension(pkt->protocol)) || !parse_l4(pkt, m, WHOLE_L4))
		return tc_drop(skb, REASON_EGRESS_UNPOLICED);
	if (!skb->ingress_ifindex)
		return egress_local(skb, m);
	/* Source NAT may have given it an address of this machine: first what was judged, then what is sent for others
	 * (an outer header around what came in). */
	if (is_icmp(m) && !(m->flags & META_LATER) && is_icmp_error(m->v6, m->code >> 8))
		judged = is_judged_error(skb, m);
	else
		judged = is_judged(m);
	if (judged || is_translated(skb, m))
		return let_go(skb, m, REASON_EGRESS_SESSION);
	if (local_addresses.lookup(&m->key.saddr))
		return egress_local(skb, m);
	return tc_drop(skb, REASON_EGRESS_UNPOLICED);
}

/* A new flow of this machine. There is nobody to answer: the sender sees the drop. */
int stage_egress_new(struct __sk_buff *skb)
{
	struct meta *m = meta_of(META_TC);

	if (!m)
		return tc_drop(skb, REASON_NO_STAGE);
	m->session_id = 0;
	if (judge(m) != ACTION_PERMIT) {
		count_rule(m->rule, m->length);
		if (m->row_flags & (ROW_LOG_OPEN | ROW_LOG_CLOSE))
			report(m, EVENT_DENY, REASON_EGRESS_DENY);
		return tc_drop(skb, REASON_EGRESS_DENY);
	}
	if (create(m) != NEXT)
		return tc_drop(skb, REASON_EGRESS_FULL);
	return let_go(skb, m, REASON_EGRESS_NEW);
}
