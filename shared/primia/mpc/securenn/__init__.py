"""SecureNN: three-party inference with the crypto provider online.

Wagh, Gupta, Chandran: *SecureNN: 3-Party Secure Computation for Neural Network Training*, PoPETs
2019(3). P0 is the model owner, P1 the data node, P2 the crypto provider; honest but curious, no two
collude. The same compiled plan as the other protocol, over Z_2^64.

    ring64, odd, field    Z_2^64 with its linear maps, Z_(2^64 - 1), Z_67
    wire                  what a role yields: Send, Receive; strict reading
    layout                what the roles agree on: blocks, streams, the gates of a plan
    compare               private comparison
    prepared              the linear maps of P0 and P1, once a model version
    gates, walk, roles    P0 and P1: ``roles.Owner``, ``roles.Client``
    assistant             P2: ``assistant.Assistant``
    driver                carries a role's messages over links

Each role is two generators, ``prepare()`` before the image exists and ``run()``; whoever has links
to the other two roles drives them:

    model = PreparedModel(plan, weights)
    owner = Owner(model, batch, mask)                 # links {1: to P1, 2: to P2}
    carry(owner.prepare(), links); carry(owner.run(), links)
    client = Client(plan, batch)                      # links {0: to P0, 2: to P2}
    carry(client.prepare(), links); scores = carry(client.run(images), links)
    assistant = Assistant(plan, batch, mask)          # links {0: to P0, 1: to P1}
    carry(assistant.prepare(), links); carry(assistant.run(), links)

``mask``: the model version's seed of the weight masks, known to P0 and P2.
"""
