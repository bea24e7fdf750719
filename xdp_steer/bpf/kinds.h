/* SPDX-License-Identifier: GPL-2.0
 *
 * Kinds of packets that several stages treat in their own way.
 */
#define PROTOCOL_AH	51

static __always_inline bool is_icmp_request(u8 v6, u8 type)
{
	return v6 ? type == 128 : type == 8 || type == 13;
}

static __always_inline bool is_ipsec(u8 protocol, __be16 dport)
{
	return protocol == IPPROTO_ESP || protocol == PROTOCOL_AH ||
	       (protocol == IPPROTO_UDP && (dport == htons(PORT_IKE) || dport == htons(PORT_NAT_T)));
}

/* IPsec to this machine, or a fragment of what may be. */
static __always_inline bool is_ipsec_to_us(struct meta *m)
{
	return is_ipsec(m->key.protocol, m->flags & META_LATER ? htons(PORT_IKE) : m->key.dport) &&
	       local_addresses.lookup(&m->key.daddr);
}

static __always_inline bool has_ports(u8 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP;
}
