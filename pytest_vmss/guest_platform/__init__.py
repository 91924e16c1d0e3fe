"""Azure as a guest sees it: network, metadata service, wire server, provisioning DVD (O1)."""
