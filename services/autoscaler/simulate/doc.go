// Package simulate replays arrivals against autoscaling policies in virtual time
// and against what could have been done by who knew them in advance.
//
// A clip waits in one queue, first come first served, until an instance has a free
// slot. An instance costs from the moment it is asked for until it is gone; it takes
// clips once it has booted; one that drains finishes its clips first. Policies see
// what they see in reality: counts at their own pace, and a service time that is
// measured and unknown at first.
//
// Beside the policies stand
//
//	oracle        the smallest steady number of instances whose wait is acceptable by Erlang's C at
//	              the plateau, with perfect foreknowledge: booted ahead of the first clip, released
//	              after the last
//	all at once   the cap, asked for at the very first clip: no policy that starts from nothing and
//	              cannot see the future has shorter waits
//	bound         waits with the cap there all the time, and the cost of nothing but the work and one
//	              boot: no policy can do better in either, none reaches both
package simulate
