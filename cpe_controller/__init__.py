"""The controller: one `network.yaml` in, a signed document for every site out, served to the agents that ask for it.

fields, network    network.yaml -> Network, with errors that name the line and the field
addresses          which inner address has each site, uplink and endpoint?
compile            Network -> one Document per site (pure)
pki, signing       certificates of sites and of the server; signatures of documents
store/             the little that is remembered, behind an interface that etcd fits too
publish            a Network into the store: what changed gets a new version, signed
setup              the state directory: made once, opened by every command
feed, api, serve   documents from the store to the agents, over mutual TLS
cli                the commands; the only place that prints
"""
