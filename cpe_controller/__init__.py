"""The controller: one `network.yaml` in, a signed document for every site out, served to the agents that ask for it.

What a network is
    fields, network    network.yaml -> Network, with errors that name the line and the field (parse, ways, values,
                       permits, pairs, overlaps, hosts, syntax)
    addresses          which inner address has each site, uplink and endpoint?
    compile            Network -> one Document per site (pure); wording says in words what differs
What gets in force, and when
    change, amend      what applying a network, or an order for one site, would write: to be signed, here or elsewhere
    publish            a signed change into the store, at once or to wait for its wave
    rollout, rolling   which sites get theirs now? (pure) and where that is kept
    standing           what operators said of single sites: revoked, drained, replaced
Who is trusted
    pki, authorities   certificates of sites and of the server, and the keys that issue them
    signing            signatures of documents
    tokens, enrolment  how a new box gets in, once
What runs
    serve, listening   everything of the serving process, and how it listens
    api, changes, feed documents and news from the store to the agents; openapi describes it
    reports, fleet     what sites say of themselves, and what that makes of them; metrics tells Prometheus
    control, commands/ what operators may ask, over a socket or in their own process; audit keeps who did
    setup, backup      the state directory: made once, opened by every command, copied
    store/             the little that is remembered, behind an interface that etcd fits too
    cli                the commands; the only place that prints (arguments, screen, cloudinit)
"""
