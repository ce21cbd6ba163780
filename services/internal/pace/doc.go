// Package pace waits for moments more precisely than the runtime's timers do.
package pace
