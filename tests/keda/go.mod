module github.com/arca-futura/memoria-operator/tests/keda

go 1.26.0

// Only named here: it is built in its own directory, with the library versions of its own go.mod.
require github.com/kedacore/keda/v2 v2.21.0
