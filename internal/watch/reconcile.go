package watch

import "time"

// Reconcile makes everything due, for a reason that State tells: somebody wants to be sure.
func (w *Watcher) Reconcile(reason string) { w.m.markAll(time.Now(), reason) }
