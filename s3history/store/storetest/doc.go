// Package storetest holds what tests of stores and of the history need: the
// contract of [store.Store] as code, a store in memory, and wrappers that fail or
// kill the process at a chosen call.
//
// Nothing that is installed imports it, but for a command built with the tag
// secrate_crash, which may wrap its destinations in [KillFromEnv].
package storetest
