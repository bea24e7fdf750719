/* SPDX-License-Identifier: GPL-2.0
 *
 * Parsing, for XDP and TC alike: Ethernet, one VLAN tag, IPv4 with options, IPv6 with a bounded chain of
 * extension headers, down to the SPI of ESP, bare (RFC 4303) or in UDP (RFC 3948).
 *
 * A stage returns NEXT, or the reason why it ends here.
 */
#define NEXT			0
#define MAX_EXTENSIONS		6	/* extension headers walked; RFC 8200 names no more kinds than that */
#define EXTENSION_UNIT		8	/* bytes that an extension header's length counts (RFC 8200 4.3) */
#define ESP_MINIMUM		8	/* SPI and sequence number: less is no ESP */
#define IP_MORE_FRAGMENTS	0x2000
#define IP_DONT_FRAGMENT	0x4000
#define IP_FRAGMENT_OFFSET	0x1fff
#define IP6_MORE_FRAGMENTS	0x0001
#define IP6_FRAGMENT_OFFSET	0xfff8
#define PORT_IKE		500
#define PORT_NAT_T		4500
#define UDP_SOURCE		0x10000
#define PLACES			0x0001000100010001ULL	/* 1 in each of four 16-bit places of a number */
#define KEEPALIVE_OCTET		0xff	/* RFC 3948 2.3 */
#define V4_MAPPED		0x0000ffff

/* Oddities of a packet that engines leave to the kernel. */
#define SHAPE_TAGGED		0x1	/* one VLAN tag */
#define SHAPE_OPTIONS		0x2	/* IPv4 options */
#define SHAPE_EXTENSIONS	0x4	/* IPv6 extension headers */
#define SHAPE_FRAGMENT		0x8	/* first fragment */
#define SHAPE_LATER		0x10	/* a fragment that is not the first */
#define SHAPE_DF		0x20	/* IPv4, must not be fragmented */
#define SHAPE_IPV6		0x40
#define SHAPE_SOURCE_ROUTE	0x80	/* IPv6 routing header of type 0 (RFC 5095) */

struct vlan_tag {
	__be16 tci;
	__be16 protocol;
};

struct extension {
	u8 next;
	u8 units;	/* length in EXTENSION_UNITs, the first not counted */
	u8 type;	/* of a routing header */
	u8 left;
};

struct ip6_fragment {
	u8 next;
	u8 reserved;
	__be16 offset;
	__be32 id;
};

struct packet {
	void *cursor;		/* next byte to parse */
	void *end;
	struct sa_key key;
	struct address source;
	void *l3;		/* IP header, NULL before there is one */
	u32 shape;
	u32 length;		/* what the IP header says, header included */
	__be32 fragment_id;
	__be16 tci;
	u8 ttl;
	u8 protocol;		/* of what the cursor is at after parse_ip() */
	/* Of ESP in UDP: UDP_SOURCE, and the port in network order. Eight bytes of its own that nobody reads later: then
	 * the verifier need not follow all that comes later once more. */
	u64 udp_source;
};

static __always_inline u32 parse_ipv4(struct packet *pkt)
{
	struct iphdr *ip = pkt->cursor;
	u32 length;

	if ((void *)(ip + 1) > pkt->end)
		return REASON_TRUNCATED;
	length = ip->ihl * 4;
	if (ip->version != 4 || length < sizeof(*ip))
		return REASON_TRUNCATED;
	if (length > sizeof(*ip))
		pkt->shape |= SHAPE_OPTIONS;
	if (ip->frag_off & htons(IP_MORE_FRAGMENTS))
		pkt->shape |= SHAPE_FRAGMENT;
	if (ip->frag_off & htons(IP_DONT_FRAGMENT))
		pkt->shape |= SHAPE_DF;
	pkt->fragment_id = ip->id;
	pkt->length = ntohs(ip->tot_len);
	pkt->ttl = ip->ttl;
	pkt->key.addr[0] = 0;
	pkt->key.addr[1] = 0;
	pkt->key.addr[2] = htonl(V4_MAPPED);
	pkt->key.addr[3] = ip->daddr;
	pkt->source.addr[0] = 0;
	pkt->source.addr[1] = 0;
	pkt->source.addr[2] = htonl(V4_MAPPED);
	pkt->source.addr[3] = ip->saddr;
	pkt->protocol = ip->protocol;
	pkt->cursor += length;
	if (ip->frag_off & htons(IP_FRAGMENT_OFFSET)) {
		pkt->shape = (pkt->shape & ~SHAPE_FRAGMENT) | SHAPE_LATER;
		return REASON_FRAGMENT;
	}
	return NEXT;
}

static __always_inline u32 parse_ipv6(struct packet *pkt)
{
	struct ipv6hdr *ip = pkt->cursor;
	struct ip6_fragment *fragment;
	struct extension *extension;
	u32 route;
	int i;

	if ((void *)(ip + 1) > pkt->end || ip->version != 6)
		return REASON_TRUNCATED;
	__builtin_memcpy(pkt->key.addr, &ip->daddr, sizeof(pkt->key.addr));
	__builtin_memcpy(pkt->source.addr, &ip->saddr, sizeof(pkt->source.addr));
	pkt->shape |= SHAPE_IPV6;
	pkt->length = sizeof(*ip) + ntohs(ip->payload_len);
	pkt->ttl = ip->hop_limit;
	pkt->protocol = ip->nexthdr;
	pkt->cursor = ip + 1;
#pragma unroll
	for (i = 0; i < MAX_EXTENSIONS; i++) {
		switch (pkt->protocol) {
		case IPPROTO_HOPOPTS:
		case IPPROTO_DSTOPTS:
		case IPPROTO_ROUTING:
			extension = pkt->cursor;
			if ((void *)(extension + 1) > pkt->end)
				return REASON_TRUNCATED;
			/* A routing header of type 0, without a branch: the verifier would have to follow both ways. */
			route = extension->type | (pkt->protocol ^ IPPROTO_ROUTING);
			pkt->shape |= SHAPE_EXTENSIONS | ((route - 1) >> 24 & SHAPE_SOURCE_ROUTE);
			pkt->protocol = extension->next;
			pkt->cursor += (extension->units + 1) * EXTENSION_UNIT;
			break;
		case IPPROTO_FRAGMENT:
			fragment = pkt->cursor;
			if ((void *)(fragment + 1) > pkt->end)
				return REASON_TRUNCATED;
			pkt->shape |= SHAPE_EXTENSIONS;
			pkt->fragment_id = fragment->id;
			pkt->protocol = fragment->next;
			pkt->cursor = fragment + 1;
			if (fragment->offset & htons(IP6_FRAGMENT_OFFSET)) {
				pkt->shape |= SHAPE_LATER;
				return REASON_FRAGMENT;
			}
			if (fragment->offset & htons(IP6_MORE_FRAGMENTS))
				pkt->shape |= SHAPE_FRAGMENT;
			break;
		default:
			return NEXT;
		}
	}
	/* A longer chain: parse_esp() sees an extension header and calls it no ESP. */
	return NEXT;
}

/* The cursor is at what `protocol` (an EtherType) says. */
static __always_inline u32 parse_l3(struct packet *pkt, __be16 protocol)
{
	pkt->l3 = pkt->cursor;
	if (protocol == htons(ETH_P_IP))
		return parse_ipv4(pkt);
	if (protocol == htons(ETH_P_IPV6))
		return parse_ipv6(pkt);
	return REASON_NOT_IP;
}

/* Leaves the cursor behind the IP headers; key.addr is the destination, source.addr the source. A fragment that is not the first
 * ends here: it carries no SPI. */
static __always_inline u32 parse_ip(struct packet *pkt)
{
	struct ethhdr *eth = pkt->cursor;
	struct vlan_tag *tag = (void *)(eth + 1);
	__be16 protocol;

	if ((void *)(eth + 1) > pkt->end)
		return REASON_TRUNCATED;
	protocol = eth->h_proto;
	pkt->cursor = eth + 1;
	if (protocol == htons(ETH_P_8021Q) || protocol == htons(ETH_P_8021AD)) {
		if ((void *)(tag + 1) > pkt->end)
			return REASON_TRUNCATED;
		protocol = tag->protocol;
		pkt->tci = tag->tci;
		pkt->cursor = tag + 1;
		pkt->shape |= SHAPE_TAGGED;
	}
	return parse_l3(pkt, protocol);
}

/* The cursor is at what may be ESP. Its first four bytes: an SPI, or zeros before IKE (RFC 3948 2.2). */
static __always_inline u32 parse_spi(struct packet *pkt)
{
	__be32 *spi = pkt->cursor;

	if (pkt->cursor + ESP_MINIMUM > pkt->end)
		return REASON_TRUNCATED;
	pkt->key.spi = *spi;
	return NEXT;
}

/* charon's ports for NAT traversal: 4500, and up to four others that SAs of this machine have. */
static __always_inline bool is_nat_t(__be16 port)
{
	u64 differing;

	if (port == htons(PORT_NAT_T))
		return true;
	/* Whether any of four 16-bit places is 0, without a branch for each: the verifier would have to follow them. */
	differing = control_value(CONTROL_NAT_T_PORTS) ^ port * PLACES;
	return port && (differing - PLACES) & ~differing & PLACES << 15;
}

/* Our port of the pair is the destination of what comes in and the source of what goes out. */
static __always_inline u32 parse_udp(struct packet *pkt, bool outbound)
{
	struct udphdr *udp = pkt->cursor;
	__be32 *marker = (void *)(udp + 1);
	u8 *octet = (void *)(udp + 1);
	__be16 ours;
	u32 length;

	if ((void *)(udp + 1) > pkt->end)
		return REASON_TRUNCATED;
	ours = outbound ? udp->source : udp->dest;
	if (ours == htons(PORT_IKE))
		return REASON_IKE;
	if (!is_nat_t(ours))
		return REASON_NOT_ESP;
	/* The UDP length, not the frame's end: short frames are padded. */
	length = ntohs(udp->len);
	if (length == sizeof(*udp) + 1 && (void *)(octet + 1) <= pkt->end && *octet == KEEPALIVE_OCTET)
		return REASON_KEEPALIVE;
	if (length < sizeof(*udp) + sizeof(*marker) || (void *)(marker + 1) > pkt->end)
		return REASON_TRUNCATED;
	if (!*marker)
		return REASON_IKE_NAT_T;
	if (length < sizeof(*udp) + ESP_MINIMUM)
		return REASON_TRUNCATED;
	pkt->cursor = marker;
	pkt->udp_source = UDP_SOURCE | udp->source;
	return parse_spi(pkt);
}

/* After parse_ip(): NEXT if the packet is ESP, its SPI in the key. */
static __always_inline u32 parse_esp(struct packet *pkt, bool outbound)
{
	if (pkt->protocol == IPPROTO_ESP)
		return parse_spi(pkt);
	if (pkt->protocol == IPPROTO_UDP)
		return parse_udp(pkt, outbound);
	return REASON_NOT_ESP;
}
