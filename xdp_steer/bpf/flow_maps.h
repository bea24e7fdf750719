/* SPDX-License-Identifier: GPL-2.0
 *
 * The maps of the firewall. flow_layout.py mirrors every structure, creates and pins the maps (the MAX_, TABLE_,
 * DIM_, SERVICE_, PORT_, SESSION_ and STATE_ numbers come from there).
 *
 * Configuration lives in two banks: user space fills the one that CONTROL_BANK does not name, then flips.
 * A rule table is matched by bit vectors: every dimension (zone pair, source, destination, service, source port) gives a
 * class, every class a row of bits with one bit per rule row; the first bit set in all of them is the rule. A class
 * 0 is what nothing more specific was said about.
 */

/* A place where packets come in or go out: an interface, or one VLAN of it. */
struct port_key {
	u32 ifindex;
	u16 vid;	/* 0: untagged */
	u16 bank;
};

struct port {
	u32 l3_ifindex;	/* the input interface of route lookups: the VLAN device for a VLAN */
	u16 zone;
	u16 flags;	/* PORT_ */
	u16 mss;	/* of flows from and to the zone, 0: as it is */
	u8 in_filter;	/* of what arrives and what leaves by it, 0: none */
	u8 out_filter;
	struct address addr4;	/* own addresses, 0: none */
	struct address addr6;
};

/* A port at the place that its numbers say, in front of the hash of ports: three lookups of a new flow, and one of every
 * packet, cost a third as much. */
struct near_port {
	u32 ifindex;	/* 0: none here */
	u16 vid;
	u16 reserved;
	struct port port;
};

/* A VLAN device and what it is on the wire. */
struct vlan_port {
	u32 ifindex;
	u16 vid;
	u16 reserved;
};

struct rule_table {
	u32 words;	/* of 64 bits, that hold rule rows */
	u32 flags;	/* TABLE_ANY_: no row asks for that dimension */
};

struct ruleset {
	struct rule_table tables[MAX_TABLES];
	u32 timeouts[MAX_TIMEOUTS];	/* seconds, indexed by TIMEOUT_ */
	u32 default_action;		/* ACTION_ */
	u32 host_filter;		/* of what is for this machine, 0: none */
};

struct prefix_key {
	u32 prefixlen;	/* of what follows, 32 bits for the first word */
	u16 bank;
	u16 side;	/* table * 2, + 1 for destinations */
	struct address addr;
};

struct service_row {
	u16 classes[SERVICE_CHUNK];
};

struct bit_row {
	u64 words[MAX_WORDS];
};

struct rule_row {
	u32 rule;	/* index into rule_counts; 0 has none */
	u32 action;	/* ACTION_ of a policy, NAT_ of a translation */
	u32 flags;	/* ROW_ */
	u32 timeout;	/* seconds of an application, 0: the default */
	u32 pool;	/* NAT_POOL, NAT_NAT64: index into pools */
	u32 prefixlen;	/* NAT_PREFIX, NAT_NPTV6: bits that come from `to` (of 128), the rest stays; NAT_NAT64: of the prefix */
	struct address to;
	__be16 port;	/* NAT_PREFIX: what first_port becomes, 0: ports stay */
	__be16 first_port;
	__be16 adjustment;	/* NAT_NPTV6: what one word of the rest is added, so that the sum of all words stays */
	u16 reserved;
};

struct pool {
	struct address first;
	u32 addresses;	/* 0: no such pool */
	u16 low;
	u16 high;
	u16 persistent;
	u16 translator;	/* tag by which VPP translates, with other addresses than these; 0: VPP does not. POOL_AUTO: at times */
	u32 overflow;	/* index + 1 */
	u32 block;	/* ports of each subscriber, 0: shared by all */
	__be32 subscribers;	/* the first one's address */
};

/* What a pool with a tag is asked for, one per CPU. */
struct pool_count {
	u64 flows;	/* new ones, also those that it had no port for */
	u64 packets;	/* of its flows, in both directions, whoever translates */
	u64 refused;	/* flows that XDP's addresses had no port for */
};

/* The far side of policies (XFRM), in each direction. */
struct tunnel_net {
	u32 prefixlen;	/* of what follows, 32 bits for the first word */
	u32 side;	/* TUNNEL_OUT, TUNNEL_IN */
	struct address far;
};

/* The n-th policy of a list, the best one first. */
struct tunnel_key {
	u32 list;
	u32 n;
};

struct tunnel {
	struct address near;
	struct address mask;
	__be16 near_port;
	__be16 near_port_mask;
	__be16 far_port;
	__be16 far_port_mask;
	u32 reqid;	/* of the states that may decrypt it */
	u16 zone;	/* row of the tunnels' port, 0: the default one */
	u8 protocol;	/* 0: any */
	u8 action;	/* TUNNEL_PROTECT, TUNNEL_CLEAR */
};

/* Zero-padded: the whole structure is hashed. */
struct flow_key {
	struct address saddr;
	struct address daddr;
	__be16 sport;
	__be16 dport;
	u16 zone;	/* that the packet comes from */
	u8 protocol;
	u8 reserved;
};

/* One direction of a session. The map has room for all of them from the start: to allocate two for each new flow costs
 * more than all else that it costs. */
struct session {
	u64 last_seen_ns;	/* CLOCK_MONOTONIC_COARSE, of a packet in this direction */
	u64 own_packets;	/* on the CPU that `owner` names: nobody else writes them */
	u64 own_octets;		/* IP lengths */
	u32 timeout;		/* seconds; the same in both directions */
	u32 ack;		/* last acknowledgement number, if SESSION_ACKED */
	u16 flags;		/* SESSION_ */
	u8 state;		/* STATE_, the same in both directions */
	u8 embedded;		/* NAT64: bits of the prefix before an IPv4 address (RFC 6052); else the tag of its pool, 0: none */
	u16 out_zone;
	u16 mss;		/* cap, 0: none */
	u32 fib_generation;	/* of the route below, 0: none yet */
	u32 out_ifindex;
	u16 out_vid;
	u16 mtu;		/* 0: unknown */
	u8 dmac[6];
	u8 smac[6];
	u64 fib_ns;		/* when the route was looked up */
	u64 owner;		/* CPU + 1 of the first packet, 0: none yet */
	/* From here on nothing is read for an established packet without NAT. */
	struct address saddr;	/* what a packet of this direction becomes */
	struct address daddr;
	__be16 sport;
	__be16 dport;
	u32 app_timeout;	/* seconds, 0: the default */
	u32 rule;		/* that permitted it, as in rule_row */
	u32 snat_rule;
	u32 dnat_rule;
	__be16 address_change;	/* what the translation does to checksums, folded: of addresses alone */
	__be16 l4_change;	/* and of addresses and ports */
	u64 id;			/* the same in both directions */
	u64 created_ns;
	u64 far_packets;	/* on all other CPUs */
	u64 far_octets;		/* an entry of the map, with 48 bytes of the kernel's and the key, fills four cache lines */
};

struct fragment_key {
	struct address saddr;
	struct address daddr;
	__be32 id;
	u16 zone;
	u8 protocol;
	u8 reserved;
};

struct fragment {
	struct flow_key key;
	u64 seen_ns;
};

struct event {
	u64 time_ns;
	u64 session;
	struct flow_key key;	/* of the forward direction, or of the packet */
	struct address saddr;	/* translated */
	struct address daddr;
	__be16 sport;
	__be16 dport;
	u16 out_zone;
	u16 kind;		/* EVENT_ */
	u32 rule;
	u32 reason;		/* REASON_; of a CLOSE the state, if it was over for TCP, or 0 */
	u32 snat_rule;		/* from here on of a CLOSE */
	u32 dnat_rule;
	u64 created_ns;
	u64 packets;		/* forward, then reverse */
	u64 octets;
	u64 back_packets;
	u64 back_octets;
};

/* What the stages know of the packet in hand, one per CPU. A program array cannot pass arguments. Everything
 * from `key` to `answer_mtu` is written before it is read, per packet; the rest lives on. */
struct meta {
	struct flow_key key;	/* as it arrived; of a later fragment: its first one's */
	struct address saddr;	/* what it becomes */
	struct address daddr;
	__be16 sport;
	__be16 dport;
	__be16 address_change;	/* META_NAT: as in the session */
	__be16 l4_change;
	u16 code;		/* what a service is matched by: destination port, ICMP type << 8 | code */
	u16 length;		/* IP length */
	u16 l3;			/* offsets into the frame */
	u16 l4;
	u16 vid;		/* of the ingress port */
	u16 in_flags;		/* PORT_ */
	u16 in_mss;
	u8 shape;		/* SHAPE_ */
	u8 ttl;
	u8 tcp_flags;
	u8 v6;
	u16 out_zone;
	u32 seq;		/* TCP, host order */
	u32 ack;
	u32 l3_ifindex;
	u32 bank;
	__be32 fragment_id;
	u16 out_flags;		/* PORT_ of the egress port */
	u16 out_mss;
	u32 out_ifindex;	/* 0: to this machine */
	u16 out_vid;
	u16 mtu;
	u8 dmac[6];
	u8 smac[6];
	u32 flags;		/* META_ */
	struct address out4;	/* own addresses of the egress port */
	struct address out6;
	u16 mss;		/* cap for this packet */
	u16 answer_mtu;
	u8 answer_type;		/* ICMP type, or ANSWER_RESET */
	u8 answer_code;
	u16 on_egress;		/* 1: the record of TC */
	u32 reason;		/* to count an answered drop under */
	u32 rule;		/* of the policy, and how its row goes on */
	u32 row_flags;
	u32 app_timeout;
	u32 dnat_rule;
	u32 nat64_pool;		/* META_NAT64, a new flow: index into pools, NO_ROW: the address of the egress port */
	u8 embedded;		/* META_NAT64: as in the session */
	u8 reply_protocol;	/* of the reverse entry that is being made */
	u16 option_at;		/* of IP or TCP, the one in hand */
	u32 term;		/* row of a filter's term */
	u32 mirror;		/* interface that a filter copies the packet to, 0: none */
	u8 mark;		/* DSCP that a filter gives the packet, or KEEP_DSCP */
	u8 out_filter;		/* on TC egress */
	u64 session_id;
	u64 next_id;
	u64 answer_ns;		/* token bucket of answers */
	u64 answer_tokens;
	struct session fresh;
};

BPF_TABLE_PINNED("hash", struct port_key, struct port, ports, MAX_PORTS * 2, PIN_ROOT "/ports");
BPF_TABLE_PINNED("array", u32, struct near_port, near_ports, MAX_BANKS * MAX_NEAR_PORTS, PIN_ROOT "/near_ports");
BPF_TABLE_PINNED("hash", u32, struct vlan_port, vlan_ports, MAX_PORTS, PIN_ROOT "/vlan_ports");
BPF_TABLE_PINNED("array", u32, struct ruleset, rulesets, MAX_BANKS, PIN_ROOT "/rulesets");
BPF_TABLE_PINNED("lpm_trie", struct prefix_key, u32, prefixes, MAX_PREFIXES * 2, PIN_ROOT "/prefixes", BPF_F_NO_PREALLOC);
BPF_TABLE_PINNED("lpm_trie", struct tunnel_net, u32, tunnel_nets, MAX_TUNNEL_NETS, PIN_ROOT "/tunnel_nets", BPF_F_NO_PREALLOC);
BPF_TABLE_PINNED("hash", struct tunnel_key, struct tunnel, tunnels, MAX_TUNNELS, PIN_ROOT "/tunnels", BPF_F_NO_PREALLOC);
BPF_TABLE_PINNED("array", u32, struct service_row, services, MAX_SERVICE_ROWS, PIN_ROOT "/services");
BPF_TABLE_PINNED("array", u32, struct bit_row, rule_bits, MAX_BIT_ROWS, PIN_ROOT "/rule_bits");
BPF_TABLE_PINNED("array", u32, struct rule_row, rule_rows, MAX_BANKS * MAX_TABLES * MAX_ROWS, PIN_ROOT "/rule_rows");
BPF_TABLE_PINNED("array", u32, struct pool, pools, MAX_BANKS * MAX_POOLS, PIN_ROOT "/pools");
BPF_TABLE_PINNED("array", u32, u32, pool_engines, MAX_TAGS, PIN_ROOT "/pool_engines");
BPF_TABLE_PINNED("percpu_array", u32, struct pool_count, pool_counts, MAX_TAGS, PIN_ROOT "/pool_counts");
BPF_TABLE_PINNED("percpu_array", u32, struct verdict_count, rule_counts, MAX_RULES, PIN_ROOT "/rule_counts");
BPF_TABLE_PINNED("hash", struct flow_key, struct session, sessions, 1, PIN_ROOT "/sessions");
BPF_TABLE_PINNED("lru_hash", struct fragment_key, struct fragment, fragments, MAX_FRAGMENTS, PIN_ROOT "/fragments");

PINNED_RING(events, EVENT_RING_BYTES);

BPF_TABLE_PINNED("percpu_array", u32, u64, events_lost, 1, PIN_ROOT "/events_lost");

/* These belong to one version of the programs and are pinned with them. */
BPF_PROG_ARRAY(stages, MAX_STAGES);
BPF_PROG_ARRAY(egress_stages, MAX_EGRESS_STAGES);
BPF_PERCPU_ARRAY(metas, struct meta, 2);
