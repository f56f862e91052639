"""Secure aggregation: a weighted sum of updates of which only the sum can be read.

The protocol of Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine
Learning" (CCS 2017), figure 4, double masking with the consistency check, over Z_2^32. Server: the
model owner. Clients: the data nodes, which speak with the server only. Pure values: no I/O.

    terms       RoundId(run, number) · Groups(parameters, buffers) · default_threshold(n) ·
                check_threshold(t, n) · MAX_NODES
    quantise    exponents(update, groups) · encode · decode · step(exponent, survivors, weight) ·
                tolerance(...)
    keys        Advertisement · Sign = (message) -> signature · Verify = (node, message, signature)
                -> bool
    integers    largest_integer(nodes) · check_integers(values, count, nodes)
    central     clip · exponent · deviation: noise inside the sum (client-level privacy)
    roster      Roster.of({node: advertisement}, verify): nodes, context, exponents, samples, weight
    graph       degree(nodes, assumed) · Graph: neighbours of each node, in a sparse round
    envelopes   deal · unseal (shares of keys and seeds, sealed node to node)
    masking     Mask · self_mask · pairwise_mask · apply_masks
    survivors   Outcome.of(roster, members, survivors) · Reveal
    state       NodeState.to_bytes() / from_bytes(data) · Phase · Step · TRANSITIONS
    client      advertise -> share -> mask | mask_integers | mask_both -> confirm -> reveal
    opening     recover · remove_masks · remove_masks_beside · unmask · mean
    server      check_advertisement · check_envelopes · inbox · RunningSum(count).add(payload) ·
                check_confirmation · check_reveal · unmask · mean
    plain       WeightedMean(count).add(payload, samples) · result()
    wire        Header(kind, round_id, count, integers) · read_header(data, expected) ·
                frame(header, vector, integers) · read_integers(file, count)
    errors      InvalidUpdate · BelowThreshold · InvalidSignature · InconsistentRound

A round, with messages as bytes (n nodes, d values; sizes in bytes):

    who     call                                                            sends
    node    state, ad = client.advertise(Seed.fresh(), ...)                 ad (about 220)
    owner   server.check_advertisement(ad, node, ...), once each
            roster = Roster.of(ads, verify)                                 ads, to every node
    node    state, sealed = client.share(state, ads, verify)                {holder: 152 bytes}
    owner   server.check_envelopes(roster, node, sealed), once each
            server.inbox(envelopes, holder)                                 {dealer: 152 bytes}
    node    state, y = client.mask(state, inbox, update)                    36 + 4 d (wire.frame)
    owner   server.RunningSum(d).add(payload)
            outcome = Outcome.of(roster, envelopes, survivors)              survivors
    node    state, signature = client.confirm(state, survivors, sign)       64
    owner   server.check_confirmation(roster, outcome, node, ...)           {node: signature}
    node    state, reveal = client.reveal(state, survivors, signatures, verify)   <= 38 + 103 n
    owner   server.check_reveal(roster, envelopes, outcome, node, reveal)
            server.unmask(sum.total, roster, envelopes, outcome, reveals)
            server.mean(sum.total, roster, outcome) -> float32 update, over the survivors

A node must be heard before each step's deadline; whoever is silent is left out of the next set:
advertisers >= dealers (members) >= survivors >= confirmers >= revealers, each at least the
threshold, else ``BelowThreshold``.
"""
