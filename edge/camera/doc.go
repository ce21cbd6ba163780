// Package camera makes clips: from a camera, an RTSP stream, a video played in
// real time, or the finished files of a directory.
//
// For the first three, child processes (rpicam-vid, ffmpeg) encode or copy H.264
// without a pause into a transport stream, and give small gray pictures beside
// it, in which package motion looks for a trigger. The last seconds of the
// stream are kept in memory. At a trigger a recording begins with the
// youngest key frame that is at least the pre-roll old, and goes on until the
// clip's length after the trigger. So it plays from its first byte, holds what
// led to the motion, and is named and stamped at the trigger.
//
// Motion during a recording does not prolong it: every clip has the same length
// and a bounded size. Motion that lasts beyond the cooldown triggers the next
// clip, whose pre-roll reaches back no further than the last one's end (to the
// key frame before it: at most one group of pictures is in both).
//
// A recording that is cut short (the camera fails, the program ends, the limit
// of bytes is reached, the disk is full) is kept as far as it came.
//
// Children end with this process, also when it is killed (Linux); they are
// started again when they fail or fall silent, at once at first and then
// ever more rarely, down to every 30 s. What they say on stderr is logged,
// bounded in length and number of lines, without passwords.
//
// An RTSP URL's user and password are handed to ffmpeg on its standard input:
// the command line, which every user of a machine can read, does not have them.
//
// Of a directory, files are taken once they are complete: closed after writing,
// moved in, or unchanged for a while. Each is taken exactly once, also when the
// program is killed in between: its clip's id is always the same, the file is
// removed once the clip is durable, and one whose clip is there already is removed
// without being taken again.
package camera
