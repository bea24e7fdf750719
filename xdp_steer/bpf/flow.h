/* SPDX-License-Identifier: GPL-2.0
 *
 * What all stages of the firewall share: the packet's record, counters, and how a packet ends.
 */
#define META_XDP	0	/* slots of `metas` */
#define META_TC		1

#define META_LATER	0x1	/* a fragment that is not the first: no L4 header */
#define META_ROUTED	0x2	/* the route in the record is good */
#define META_SESSION	0x4	/* of a session (not an ICMP error about one) */
#define META_ERROR	0x8	/* an ICMP error */
#define META_NAT	0x10	/* addresses or ports change */
#define META_PARTIAL	0x20	/* its L4 checksum was left to hardware */
#define META_LOOKED	0x40	/* the route was looked up by this packet */
#define META_TO_SELF	0x80
#define META_NAT64	0x200	/* becomes a packet of the other family */
#define META_SCREENED	0x100	/* what the screens have against new flows was looked at */
#define META_FAR	0x400	/* IPsec policies cover where it goes */
#define META_INTO	0x800	/* and one protects it */
#define META_TRANSLATOR	0x1000	/* VPP translates it */

#define TCP_FIN		0x01
#define TCP_SYN		0x02
#define TCP_RST		0x04
#define TCP_ACK		0x10

#define ANSWER_RESET	0xff	/* in answer_type: a TCP RST instead of an ICMP error */

#define NO_ROW		0xffffffff
#define SECOND_NS	1000000000ULL
#define ROUTE_NS	(5 * SECOND_NS)	/* a cached route is looked up anew after that, whatever happens */

#define ROW_MATCHED	0x80000000	/* beside ROW_ flags in the record: a row decided, not the default */
#define ICMP6_PROTOCOL			58
#define ICMP_UNREACHABLE		3	/* types and codes: RFC 792, 1812, 4443 */
#define ICMP_HOST_UNREACHABLE		1
#define ICMP_FRAGMENTATION_NEEDED	4
#define ICMP_PROHIBITED			13
#define ICMP_TIME_EXCEEDED		11
#define ICMP6_UNREACHABLE		1
#define ICMP6_NO_ROUTE			0
#define ICMP6_PROHIBITED		1
#define ICMP6_TOO_BIG			2
#define ICMP6_TIME_EXCEEDED		3
#define ICMP6_PARAMETER			4

static __always_inline struct meta *meta_of(u32 slot)
{
	return metas.lookup(&slot);
}

static __always_inline int drop(struct xdp_md *ctx, u32 reason)
{
	count_verdict(reason, (void *)(long)ctx->data_end - (void *)(long)ctx->data, 1);
	return XDP_DROP;
}

static __always_inline int pass(struct xdp_md *ctx, u32 reason)
{
	count_verdict(reason, (void *)(long)ctx->data_end - (void *)(long)ctx->data, 1);
	return XDP_PASS;
}

/* A tail call that comes back found no program: the packet must not get by. */
static __always_inline int go(struct xdp_md *ctx, u32 stage)
{
	stages.call(ctx, stage);
	return drop(ctx, REASON_NO_STAGE);
}

/* To this machine. `m->daddr` and `m->dport` are what the packet becomes; its header is changed by the caller, or by the
 * filter that looks at it before. */
static __always_inline int deliver(struct xdp_md *ctx, struct meta *m, u32 reason)
{
	m->reason = reason;
	if (m->in_flags & PORT_HOST_FILTER)
		return go(ctx, STAGE_HOST_FILTER);
	return pass(ctx, reason);
}

/* Multicast, broadcast and unspecified addresses are nobody to answer. */
static __always_inline bool is_v4_mapped(const struct address *a)
{
	return !a->addr[0] && !a->addr[1] && a->addr[2] == htonl(V4_MAPPED);
}

static __always_inline bool is_group(const struct address *a)
{
	if (is_v4_mapped(a))
		return (a->addr[3] & htonl(0xf0000000)) == htonl(0xe0000000) || a->addr[3] == 0xffffffff;
	return (a->addr[0] & htonl(0xff000000)) == htonl(0xff000000);
}

static __always_inline bool is_unspecified(const struct address *a)
{
	return !a->addr[0] && !a->addr[1] && !a->addr[3] && (!a->addr[2] || a->addr[2] == htonl(V4_MAPPED));
}

/* What no packet on a wire may have as its source: RFC 1812 5.3.7, RFC 4291 2.5.2, 2.5.3 and 2.7. XDP forwards past the
 * kernel, which would drop it. */
static __always_inline bool is_martian(const struct address *a)
{
	if (is_group(a) || is_unspecified(a))
		return true;
	if (is_v4_mapped(a))
		return (a->addr[3] & htonl(0xff000000)) == htonl(0x7f000000);
	return !a->addr[0] && !a->addr[1] && !a->addr[2] && a->addr[3] == htonl(1);
}

static __always_inline bool same_address(const struct address *a, const struct address *b)
{
	return a->addr[0] == b->addr[0] && a->addr[1] == b->addr[1] && a->addr[2] == b->addr[2] &&
	       a->addr[3] == b->addr[3];
}

/* Addresses and ports as they are. What is neither looked up nor kept needs no copy of them. */
static __always_inline void remain(struct meta *m)
{
	m->saddr = m->key.saddr;
	m->daddr = m->key.daddr;
	m->sport = m->key.sport;
	m->dport = m->key.dport;
}

static __always_inline int answer_icmp(struct xdp_md *ctx, struct meta *m, u8 type, u8 code, u16 mtu, u32 reason)
{
	m->answer_type = type;
	m->answer_code = code;
	m->answer_mtu = mtu;
	m->reason = reason;
	return go(ctx, STAGE_ANSWER);
}

static __always_inline void count_rule(u32 rule, u64 octets)
{
	struct verdict_count *count;

	if (!rule)
		return;
	count = rule_counts.lookup(&rule);
	if (!count)
		return;
	count->packets++;
	count->octets += octets;
}

static __always_inline struct port *near_port_of(u32 ifindex, u16 vid, u32 bank)
{
	u32 place = bank * MAX_NEAR_PORTS + ((ifindex + vid) & (MAX_NEAR_PORTS - 1));
	struct near_port *near = near_ports.lookup(&place);

	return near && near->ifindex == ifindex && near->vid == vid ? &near->port : NULL;
}

static __always_inline struct port *port_of(u32 ifindex, u16 vid, u32 bank)
{
	struct port_key key = { .ifindex = ifindex, .vid = vid, .bank = bank };
	struct port *port = near_port_of(ifindex, vid, bank);

	return port ? port : ports.lookup(&key);
}

/* What a packet becomes is of this family. */
static __always_inline bool becomes_v6(struct meta *m)
{
	return m->flags & META_NAT64 ? !m->v6 : m->v6;
}

/* NAT64: the protocol in the other family. */
static __always_inline u8 crossed(u8 protocol)
{
	if (protocol == ICMP6_PROTOCOL)
		return IPPROTO_ICMP;
	return protocol == IPPROTO_ICMP ? ICMP6_PROTOCOL : protocol;
}

/* The key of the other direction, from what the packet becomes. */
static __always_inline void reply_key(struct flow_key *key, const struct session *s, u8 protocol)
{
	key->saddr = s->daddr;
	key->daddr = s->saddr;
	key->sport = s->dport;
	key->dport = s->sport;
	key->zone = s->out_zone;
	key->protocol = s->flags & SESSION_NAT64 ? crossed(protocol) : protocol;
	key->reserved = 0;
}
