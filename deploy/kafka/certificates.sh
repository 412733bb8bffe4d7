#!/bin/sh
# Makes, in the folder $1, an authority (ca.pem) and the key and certificate of a broker on this machine (broker.pem).
# The authority's own key is not kept: it vouches for this broker and for nothing else.
set -eu
cd "$1"
umask 077
trap 'rm -f ca.cnf ca.key ca.srl broker.cnf broker.csr broker.key broker.crt' EXIT

cat > ca.cnf <<'END'
[req]
distinguished_name = name
x509_extensions = authority
prompt = no
[name]
CN = Perdure test authority
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
END
cat > broker.cnf <<'END'
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = DNS:localhost, IP:127.0.0.1
END

key='-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes'
# shellcheck disable=SC2086 # several options in one variable
openssl req -config ca.cnf $key -x509 -days 3650 -keyout ca.key -out ca.pem
# shellcheck disable=SC2086
openssl req -config ca.cnf $key -subj /CN=localhost -keyout broker.key -out broker.csr
openssl x509 -req -in broker.csr -CA ca.pem -CAkey ca.key -CAcreateserial -extfile broker.cnf -days 3650 -out broker.crt
cat broker.key broker.crt > broker.pem
